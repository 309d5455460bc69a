//! The process in numbers, by the names that Prometheus' own clients use.
//!
//! Everything is read from `/proc/self` and by system calls, so it works where `/proc` shows nothing but the processes
//! (`subset=pid`). A number that this system does not tell is left out.

/// The numbers of this process at one moment.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(crate) struct Process {
    /// Processor time in user and system mode, in seconds.
    pub(crate) cpu_seconds: Option<f64>,
    /// Resident memory in bytes.
    pub(crate) resident_bytes: Option<u64>,
    /// Virtual memory in bytes.
    pub(crate) virtual_bytes: Option<u64>,
    /// Open file descriptors.
    pub(crate) open_fds: Option<u64>,
    /// The most file descriptors that it may open. `None` also where there is no limit.
    pub(crate) max_fds: Option<u64>,
    /// Threads.
    pub(crate) threads: Option<u64>,
    /// The time at which it started, in seconds since 1970.
    pub(crate) start_seconds: Option<f64>,
}

impl Process {
    #[cfg(not(target_os = "linux"))]
    pub(crate) fn read() -> Self {
        Self::default()
    }

    #[cfg(target_os = "linux")]
    pub(crate) fn read() -> Self {
        use std::fs;

        use rustix::{
            param::page_size,
            process::{Resource, getrlimit},
            time::{ClockId, clock_gettime},
        };

        let stat = fs::read_to_string("/proc/self/stat").ok();
        let stat = stat.as_deref().and_then(Stat::of);
        let cpu = clock_gettime(ClockId::ProcessCPUTime);
        Self {
            cpu_seconds: Some(seconds(cpu)),
            resident_bytes: stat.map(|stat| stat.resident_pages * page_size() as u64),
            virtual_bytes: stat.map(|stat| stat.virtual_bytes),
            // Less the one that reads the folder.
            open_fds: fs::read_dir("/proc/self/fd")
                .ok()
                .map(|open| (open.count() as u64).saturating_sub(1)),
            max_fds: getrlimit(Resource::Nofile).current,
            threads: stat.map(|stat| stat.threads),
            start_seconds: stat.map(|stat| stat.start_seconds()),
        }
    }
}

/// The fields of `/proc/self/stat` that are of use here.
#[cfg(target_os = "linux")]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stat {
    threads: u64,
    /// The time of the start, in ticks since the machine was booted.
    start_ticks: u64,
    virtual_bytes: u64,
    resident_pages: u64,
}

#[cfg(target_os = "linux")]
impl Stat {
    /// The fields of a line, by the numbers that proc(5) gives them.
    fn of(line: &str) -> Option<Self> {
        // The name of the program is in parentheses, and may have some, and spaces, in it.
        let (_, after_name) = line.rsplit_once(") ")?;
        let field = |number: usize| -> Option<u64> {
            let third = 3;
            after_name.split(' ').nth(number - third)?.parse().ok()
        };
        Some(Self {
            threads: field(20)?,
            start_ticks: field(22)?,
            virtual_bytes: field(23)?,
            resident_pages: field(24)?,
        })
    }

    /// The time of the start, in seconds since 1970. From the clocks: the time of the boot is in `/proc/stat`, which may
    /// not be there.
    fn start_seconds(self) -> f64 {
        use rustix::{
            param::clock_ticks_per_second,
            time::{ClockId, clock_gettime},
        };

        let since_boot = self.start_ticks as f64 / clock_ticks_per_second() as f64;
        let boot =
            seconds(clock_gettime(ClockId::Realtime)) - seconds(clock_gettime(ClockId::Boottime));
        // The two clocks are read one after the other: to a hundredth it is the same at each scrape.
        ((boot + since_boot) * 100.0).round() / 100.0
    }
}

#[cfg(target_os = "linux")]
fn seconds(time: rustix::time::Timespec) -> f64 {
    time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use std::time::{SystemTime, UNIX_EPOCH};

    use super::*;

    #[test]
    fn name_of_the_program_may_look_like_fields() {
        let rest = "S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22 23";
        let stat = Stat::of(&format!("7 (a) b) 1 2 (c) {rest}")).unwrap();
        assert_eq!((stat.threads, stat.start_ticks), (17, 19));
        assert_eq!((stat.virtual_bytes, stat.resident_pages), (20, 21));
        assert_eq!(Stat::of("7 (a) S 1"), None);
        assert_eq!(Stat::of(""), None);
    }

    #[test]
    fn process_tells_its_own_numbers() {
        let Process {
            cpu_seconds,
            resident_bytes,
            virtual_bytes,
            open_fds,
            threads,
            start_seconds,
            ..
        } = Process::read();
        assert!(cpu_seconds.unwrap() > 0.0);
        assert!((1 << 20..virtual_bytes.unwrap()).contains(&resident_bytes.unwrap()));
        assert!(open_fds.unwrap() >= 3);
        assert!(threads.unwrap() >= 1);
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
        let age = now.as_secs_f64() - start_seconds.unwrap();
        assert!((-1.0..3_600.0).contains(&age), "{age}");
    }
}
