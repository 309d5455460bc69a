//! Plots as SVG.

use std::error::Error;

use plotters::{
    coord::Shift,
    prelude::{
        BLACK, ChartBuilder, Circle, Color as _, DrawingArea, IntoDrawingArea as _, IntoFont as _,
        IntoLogRange as _, LineSeries, PathElement, RGBColor, Rectangle, SVGBackend, Text, WHITE,
    },
};

/// The bars of one metric.
pub(crate) struct Panel {
    pub(crate) title: String,
    /// Name, length, and the label at the end.
    pub(crate) bars: Vec<(String, f64, String)>,
}

/// A line through points.
pub(crate) struct Line {
    pub(crate) name: &'static str,
    pub(crate) points: Vec<(f64, f64)>,
}

const WIDTH: u32 = 760;
const TITLE: u32 = 40;
const BAR: u32 = 30;
const PANEL: u32 = 50;
const FONT: &str = "sans-serif";

const FIRST: RGBColor = RGBColor(0x1b, 0x6e, 0x8c);
const OTHER: RGBColor = RGBColor(0xa8, 0xb4, 0xba);

/// Draws panels below one another. Returns an empty picture if that fails: the tables have the numbers.
pub(crate) fn svg(title: &str, panels: &[Panel]) -> String {
    let mut svg = String::new();
    if let Err(error) = draw(title, panels, &mut svg) {
        eprintln!("bench-peers: cannot draw {title}: {error}");
    }
    svg
}

/// Draws lines over a quantity, on a logarithmic axis. Returns an empty picture if that fails.
pub(crate) fn lines(title: &str, quantity: &str, lines: &[Line]) -> String {
    let mut svg = String::new();
    if let Err(error) = draw_lines(title, quantity, lines, &mut svg) {
        eprintln!("bench-peers: cannot draw {title}: {error}");
    }
    svg
}

fn draw_lines(
    title: &str,
    quantity: &str,
    lines: &[Line],
    svg: &mut String,
) -> Result<(), Box<dyn Error>> {
    let points = || lines.iter().flat_map(|line| &line.points);
    let least = points().map(|(x, _)| *x).fold(f64::MAX, f64::min);
    let most = points().map(|(x, _)| *x).fold(0.0, f64::max);
    let highest = points().map(|(_, y)| *y).fold(0.0, f64::max);
    if least >= most {
        return Err("fewer than two points".into());
    }
    let root = SVGBackend::with_string(svg, (WIDTH, 360)).into_drawing_area();
    root.fill(&WHITE)?;
    let mut chart = ChartBuilder::on(&root)
        .caption(title, (FONT, 20))
        .margin(12)
        .x_label_area_size(40)
        .y_label_area_size(60)
        .build_cartesian_2d((least..most).log_scale(), 0.0..highest * 1.1)?;
    chart
        .configure_mesh()
        .x_desc(quantity)
        .y_desc("server CPU per delivery, us")
        .draw()?;
    for (line, color) in lines.iter().zip([FIRST, OTHER]) {
        let drawn = chart.draw_series(LineSeries::new(
            line.points.iter().copied(),
            color.stroke_width(2),
        ))?;
        drawn
            .label(line.name)
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 18, y)], color.stroke_width(2)));
        chart.draw_series(
            line.points
                .iter()
                .map(|point| Circle::new(*point, 3, color.filled())),
        )?;
    }
    chart
        .configure_series_labels()
        .border_style(BLACK.mix(0.3))
        .background_style(WHITE)
        .draw()?;
    drop(chart);
    root.present()?;
    drop(root);
    Ok(())
}

fn height(panel: &Panel) -> u32 {
    PANEL + BAR * panel.bars.len() as u32
}

fn draw(title: &str, panels: &[Panel], svg: &mut String) -> Result<(), Box<dyn Error>> {
    let full = TITLE + panels.iter().map(height).sum::<u32>();
    let root = SVGBackend::with_string(svg, (WIDTH, full)).into_drawing_area();
    root.fill(&WHITE)?;
    let mut rest = root.titled(title, (FONT, 22))?;
    for panel in panels {
        let (area, below) = rest.split_vertically(height(panel));
        draw_panel(panel, &area)?;
        rest = below;
    }
    root.present()?;
    Ok(())
}

fn draw_panel(
    panel: &Panel,
    area: &DrawingArea<SVGBackend<'_>, Shift>,
) -> Result<(), Box<dyn Error>> {
    let longest = panel
        .bars
        .iter()
        .map(|(_, value, _)| *value)
        .fold(f64::MIN_POSITIVE, f64::max);
    let count = panel.bars.len() as f64;
    let mut chart = ChartBuilder::on(area)
        .caption(&panel.title, (FONT, 15))
        .margin_left(150)
        .margin_right(20)
        .build_cartesian_2d(0.0..longest * 1.15, 0.0..count)?;
    chart.plotting_area().draw(&Rectangle::new(
        [(0.0, 0.0), (0.0, count)],
        BLACK.stroke_width(1),
    ))?;
    for (place, (name, value, label)) in panel.bars.iter().enumerate() {
        let middle = count - place as f64 - 0.5;
        let color = if place == 0 { FIRST } else { OTHER };
        let corners = [(0.0, middle - 0.35), (*value, middle + 0.35)];
        chart.draw_series([Rectangle::new(corners, color.filled())])?;
        let end = (value + longest * 0.01, middle + 0.2);
        chart
            .plotting_area()
            .draw(&Text::new(label.clone(), end, (FONT, 13).into_font()))?;
        let (x, y) = chart.plotting_area().map_coordinate(&(0.0, middle + 0.2));
        let (left, top) = area.get_base_pixel();
        let at = (x - left - 140, y - top);
        area.draw(&Text::new(name.clone(), at, (FONT, 13).into_font()))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_bar_has_its_name_and_value() {
        let panel = Panel {
            title: "cost, us".into(),
            bars: vec![
                ("a".into(), 1.0, "1.00".into()),
                ("b".into(), 2.0, "2.00".into()),
            ],
        };
        let svg = svg("Work", &[panel]);
        for text in ["Work", "cost, us", "a", "b", "1.00", "2.00"] {
            assert!(svg.contains(&format!("\n{text}\n")), "{text} in {svg}");
        }
    }
}
