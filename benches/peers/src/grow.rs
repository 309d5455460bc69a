//! The cost of a delivery as the load grows: one quantity after another, all others constant.

use std::{fmt::Write as _, fs, path::PathBuf, time::Duration};

use clap::Args;
use tidegate_bench::{Environment, Error, Fanout, FanoutReport, Grpc, Progress, Shape, digits};

use crate::{
    baselines::Failure,
    document::head,
    peer::{Launching, Peer, Serving},
    plot::{self, Line},
};

/// The options of the measurement.
#[derive(Debug, Args)]
pub(crate) struct GrowArgs {
    /// How long to measure each point.
    #[arg(long, value_name = "SECONDS", default_value_t = 3.0)]
    seconds: f64,

    /// How long to run before measuring.
    #[arg(long, value_name = "SECONDS", default_value_t = 1.0)]
    warm_up: f64,

    #[command(flatten)]
    launching: Launching,

    /// The document to write.
    #[arg(long, value_name = "PATH", default_value = "docs/growth.md")]
    output: PathBuf,

    /// The command that the document says to repeat it with.
    #[arg(long, value_name = "TEXT", default_value = "scripts/bench-growth")]
    command_line: String,
}

/// One quantity that grows.
struct Series {
    title: &'static str,
    description: &'static str,
    quantity: &'static str,
    file: &'static str,
    values: &'static [u32],
    fanout: fn(u32) -> Fanout,
}

/// The result at one value of the quantity.
struct Point {
    value: u32,
    report: Result<FanoutReport, Error>,
}

const SERIES: [Series; 7] = [
    Series {
        title: "Subscribers, flat out",
        description: "Each on a connection of its own, all with one filter, 256 B.",
        quantity: "subscribers",
        file: "subscribers.svg",
        values: &[1, 10, 100, 1_000, 4_000],
        fanout: |value| Fanout {
            subscribers: value as usize,
            ..flat_out()
        },
    },
    Series {
        title: "Events per second",
        description: "To 100 subscribers, each on a connection of its own, 256 B. The slower events come, the fewer \
                      share a system call, and the colder is what each needs.",
        quantity: "events/s",
        file: "rate.svg",
        values: &[10, 100, 500, 2_000, 10_000],
        fanout: |value| Fanout {
            rate: Some(value.into()),
            ..flat_out()
        },
    },
    Series {
        title: "Streams on a connection",
        description: "1,000 subscribers, 50 events a second, 256 B. What all streams of a connection get at one \
                      moment goes in one system call.",
        quantity: "streams per connection",
        file: "streams.svg",
        values: &[1, 4, 20, 100, 250],
        fanout: |value| Fanout {
            subscribers: 1_000,
            streams_per_connection: value as usize,
            rate: Some(50.0),
            ..flat_out()
        },
    },
    Series {
        title: "Distinct filters that match an event",
        description: "As many subscribers as filters, 100 to a connection, flat out, 256 B. Publishing appends to the \
                      feed of each distinct filter.",
        quantity: "filters",
        file: "filters.svg",
        values: &[1, 10, 100, 1_000, 4_000],
        fanout: |value| Fanout {
            subscribers: value as usize,
            streams_per_connection: 100,
            shape: Shape::Distinct,
            ..flat_out()
        },
    },
    Series {
        title: "Topics with one subscriber each",
        description: "Events go to the topics in turn, so each is delivered once; 100 subscribers to a connection, 256 B.",
        quantity: "topics",
        file: "topics.svg",
        values: &[10, 100, 1_000, 10_000],
        fanout: |value| Fanout {
            subscribers: value as usize,
            streams_per_connection: 100,
            shape: Shape::Own,
            ..flat_out()
        },
    },
    Series {
        title: "A topic of their own and a shared one",
        description: "Every other event goes to all, the others to one subscriber each; 100 subscribers to a connection, \
                      256 B.",
        quantity: "subscribers",
        file: "own-and-shared.svg",
        values: &[10, 100, 1_000, 10_000],
        fanout: |value| Fanout {
            subscribers: value as usize,
            streams_per_connection: 100,
            shape: Shape::OwnAndShared,
            ..flat_out()
        },
    },
    Series {
        title: "Size of the payload",
        description: "To 100 subscribers, each on a connection of its own, flat out.",
        quantity: "bytes",
        file: "payload.svg",
        values: &[64, 256, 1_024, 4_096, 16_384],
        fanout: |value| Fanout {
            payload_bytes: value as usize,
            ahead: if value > 1_024 { 64 } else { 512 },
            ..flat_out()
        },
    },
];

/// 100 subscribers, each on its own connection, flat out.
const fn flat_out() -> Fanout {
    Fanout {
        subscribers: 100,
        streams_per_connection: 1,
        topics: 1,
        shape: Shape::Literal,
        payload_bytes: 256,
        rate: None,
        ahead: 512,
        batch: 64,
        warm_up: Duration::ZERO,
        duration: Duration::ZERO,
        awake: false,
        stalled: 0,
        window_bytes: Grpc::WINDOW,
    }
}

pub(crate) async fn run(args: &GrowArgs) -> Result<(), Failure> {
    let mut environment = None;
    let mut sections = Vec::new();
    for series in &SERIES {
        let mut points = Vec::new();
        for &value in series.values {
            let report = args
                .measure(&(series.fanout)(value), &mut environment)
                .await;
            let point = Point { value, report };
            println!("{}: {}", series.title, point.row());
            points.push(point);
        }
        sections.push((series, points));
    }
    let environment = environment.ok_or("no server could be started")?;
    args.write(&environment, &sections)?;
    println!("written: {}", args.output.display());
    Ok(())
}

impl GrowArgs {
    async fn measure(
        &self,
        fanout: &Fanout,
        environment: &mut Option<Environment>,
    ) -> Result<FanoutReport, Error> {
        let fanout = Fanout {
            warm_up: Duration::from_secs_f64(self.warm_up),
            duration: Duration::from_secs_f64(self.seconds),
            ..fanout.clone()
        };
        let session = self.launching.begin(Peer::Tidegate, Serving::PLAIN).await?;
        environment.get_or_insert_with(|| session.environment().clone());
        let report = fanout.run(&session, &Progress::hidden()).await;
        session.end().await;
        report
    }

    fn write(
        &self,
        environment: &Environment,
        sections: &[(&Series, Vec<Point>)],
    ) -> Result<(), Error> {
        let failed = |what: &str| Error::system(format!("cannot write {what}"));
        let plots = self.output.with_extension("");
        fs::create_dir_all(&plots).map_err(failed(&plots.display().to_string()))?;
        let folder = plots.file_name().unwrap_or_default().to_string_lossy();
        let mut text = format!(
            "# What a delivery costs as the work grows\n\n\
             Written by `{}`: one quantity grows, and all others are constant. Processor time is that of the server's \
             process by the kernel's count, divided by the deliveries. Memory is the growth of the server's process \
             until all had subscribed, divided by the subscribers. One run of {} s for each point. Every stream's \
             accounts were verified.\n\n",
            self.command_line, self.seconds
        );
        text.push_str(&head(environment));
        for (series, points) in sections {
            // Writing to a string does not fail.
            let _ = writeln!(text, "\n## {}\n\n{}\n", series.title, series.description);
            let _ = writeln!(
                text,
                "| {} | server CPU per delivery, us | of it user | of it system | deliveries, million/s | latency p50, ms | \
                 p99, ms | memory per subscriber, KiB | server, % of a core |\n|---|---|---|---|---|---|---|---|---|",
                series.quantity
            );
            for point in points {
                let _ = writeln!(text, "| {}", point.row());
            }
            let _ = writeln!(text, "\n![{}]({folder}/{})", series.title, series.file);
            let svg = plot::lines(series.title, series.quantity, &lines(points));
            let file = plots.join(series.file);
            fs::write(&file, svg).map_err(failed(&file.display().to_string()))?;
        }
        fs::write(&self.output, text).map_err(failed(&self.output.display().to_string()))
    }
}

/// Returns two lines of processor time per delivery: user and system together, and user alone.
fn lines(points: &[Point]) -> [Line; 2] {
    let costs = points.iter().filter_map(|point| {
        let report = point.report.as_ref().ok()?;
        let cost = report.figures.server.as_ref()?.per_delivery?;
        Some((f64::from(point.value), cost))
    });
    let costs: Vec<_> = costs.collect();
    let line = |name, points: Vec<_>| Line { name, points };
    [
        line(
            "user and system",
            costs.iter().map(|(x, cost)| (*x, cost.total_us)).collect(),
        ),
        line(
            "user",
            costs.iter().map(|(x, cost)| (*x, cost.user_us)).collect(),
        ),
    ]
}

impl Point {
    fn row(&self) -> String {
        let report = match &self.report {
            Ok(report) => report,
            Err(error) => return format!("{} | failed: {error} | | | | | | | |", self.value),
        };
        let figures = &report.figures;
        let server = figures.server.as_ref();
        let cost = server.and_then(|server| server.per_delivery);
        let latency = figures.latency;
        let memory = server.and_then(|server| server.resident_per_subscriber);
        let cells = [
            cost.map(|cost| cost.total_us),
            cost.map(|cost| cost.user_us),
            cost.map(|cost| cost.system_us),
            Some(figures.deliveries_per_second / 1e6),
            latency.map(|latency| latency.p50_us / 1e3),
            latency.map(|latency| latency.p99_us / 1e3),
            memory.map(|bytes| bytes / 1_024.0),
            server.map(|server| server.cores_busy * 100.0),
        ];
        let mut row = format!("{} |", self.value);
        for cell in cells {
            let _ = write!(row, " {} |", cell.map_or_else(|| "-".into(), digits));
        }
        row
    }
}
