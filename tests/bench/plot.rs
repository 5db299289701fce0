//! Latency over time, from fio's log of it, as an SVG.
//!
//! ```text
//! cargo bench --bench plot -- LOG SVG [SECONDS=TEXT]...      a line with its text at each of these moments
//! ```
//!
//! The log is fio's `--write_lat_log` with `--log_max_value=1`: of each interval the longest wait. Writes and reads are two
//! series.
#![allow(clippy::unwrap_used, reason = "a benchmark that cannot go on ends")]

use plotters::prelude::*;

/// Seconds since the start, longest wait in milliseconds.
type Series = Vec<(f64, f64)>;

fn main() {
    let mut arguments = std::env::args().skip(1).filter(|argument| argument != "--bench");
    let (Some(log), Some(svg)) = (arguments.next(), arguments.next()) else {
        println!("usage: cargo bench --bench plot -- LOG SVG [SECONDS=TEXT]...");
        return;
    };
    let marks: Vec<(f64, String)> = arguments
        .filter_map(|argument| argument.split_once('=').map(|(at, text)| (at.parse().unwrap(), text.to_owned())))
        .collect();
    let text = std::fs::read_to_string(log).unwrap();
    draw(&svg, [("writes", series(&text, 1), RED), ("reads", series(&text, 0), BLUE)], &marks);
}

/// Of fio's lines "milliseconds, nanoseconds, direction, …" those of one direction.
fn series(text: &str, direction: u32) -> Series {
    let point = |line: &str| {
        let fields: Vec<f64> = line.split(',').take(3).filter_map(|field| field.trim().parse().ok()).collect();
        let [at, wait, kind] = fields[..] else { return None };
        (kind == f64::from(direction)).then_some((at / 1e3, wait / 1e6))
    };
    text.lines().filter_map(point).collect()
}

fn draw(path: &str, series: [(&str, Series, RGBColor); 2], marks: &[(f64, String)]) {
    let points = || series.iter().flat_map(|(_, points, _)| points);
    let end = points().map(|(at, _)| *at).fold(1.0, f64::max);
    let most = points().map(|(_, wait)| *wait).fold(1.0, f64::max) * 2.0;
    let area = SVGBackend::new(path, (900, 360)).into_drawing_area();
    area.fill(&WHITE).unwrap();
    let mut chart = ChartBuilder::on(&area)
        .margin(12)
        .x_label_area_size(36)
        .y_label_area_size(64)
        .build_cartesian_2d(0.0..end, (0.05..most).log_scale())
        .unwrap();
    chart.configure_mesh().x_desc("seconds").y_desc("longest wait of 0.2 s, ms").draw().unwrap();
    for (at, text) in marks {
        let line = [(*at, 0.05), (*at, most)];
        chart.draw_series(LineSeries::new(line, BLACK.mix(0.5))).unwrap();
        let label = Text::new(text.clone(), (*at + end / 200.0, most * 0.8), ("sans-serif", 14));
        chart.draw_series([label]).unwrap();
    }
    for (name, points, color) in series {
        let drawn = chart.draw_series(LineSeries::new(points, color)).unwrap();
        drawn.label(name).legend(move |(x, y)| PathElement::new([(x, y), (x + 18, y)], color));
    }
    chart.configure_series_labels().background_style(WHITE.mix(0.8)).border_style(BLACK.mix(0.3)).draw().unwrap();
    area.present().unwrap();
}
