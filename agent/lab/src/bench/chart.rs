//! Charts as inline SVG: lines with markers on linear or logarithmic axes with round ticks.
//!
//! Colors come from the page's CSS (`s0` … `s3`), so a chart is readable in light and dark; series differ by marker and
//! dash as well, so color is never the only difference.

use std::fmt::Write as _;

/// Size of a chart in its own units; the page scales it.
const WIDTH: f64 = 460.0;
const HEIGHT: f64 = 300.0;
const TOP: f64 = 30.0;
const BOTTOM: f64 = 46.0;
const RIGHT: f64 = 16.0;
/// Width of a digit, as an estimate.
const DIGIT: f64 = 7.4;

/// How values lie along an axis.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scale {
    /// From 0, evenly.
    Linear,
    /// By their logarithm.
    Log,
}

/// One axis.
pub struct Axis {
    /// What it shows, with the unit if the ticks have none.
    pub title: String,
    /// How values lie along it.
    pub scale: Scale,
    /// Values that get a tick, instead of round ones.
    pub ticks: Option<Vec<f64>>,
    /// How a tick is written.
    pub label: fn(f64) -> String,
}

/// One line.
pub struct Series {
    /// Index of its color and its marker.
    pub look: usize,
    /// Dashed, with hollow markers.
    pub dashed: bool,
    /// x, y and what a pointer over the point shows.
    pub points: Vec<(f64, f64, String)>,
}

/// A chart.
pub struct Chart {
    /// For those who cannot see it.
    pub description: String,
    /// Across.
    pub x: Axis,
    /// Up.
    pub y: Axis,
    /// Its lines.
    pub series: Vec<Series>,
    /// A horizontal line with its name.
    pub bound: Option<(f64, String)>,
}

/// Where values lie on an axis.
struct Range {
    scale: Scale,
    low: f64,
    high: f64,
    ticks: Vec<f64>,
}

impl Range {
    fn new(axis: &Axis, values: impl Iterator<Item = f64> + Clone) -> Self {
        let low = values.clone().fold(f64::INFINITY, f64::min);
        let high = values.fold(f64::NEG_INFINITY, f64::max);
        if let Some(ticks) = &axis.ticks {
            return Self { scale: axis.scale, low, high, ticks: ticks.clone() };
        }
        let ticks = match axis.scale {
            Scale::Linear => linear_ticks(high),
            Scale::Log => log_ticks(low, high),
        };
        let (first, last) = (ticks[0], ticks[ticks.len() - 1]);
        Self { scale: axis.scale, low: first, high: last, ticks }
    }

    /// 0 at the low end, 1 at the high one; the middle where they are the same.
    fn share(&self, value: f64) -> f64 {
        let (low, high, value) = match self.scale {
            Scale::Linear => (self.low, self.high, value),
            Scale::Log => (self.low.ln(), self.high.ln(), value.ln()),
        };
        if high > low { (value - low) / (high - low) } else { 0.5 }
    }
}

/// Round values from 0 to `high` or just above, four to six of them.
pub fn linear_ticks(high: f64) -> Vec<f64> {
    let high = if high > 0.0 { high } else { 1.0 };
    let rough = high / 5.0;
    let power = 10_f64.powf(rough.log10().floor());
    let step = [1.0, 2.0, 2.5, 5.0, 10.0].map(|step| step * power).into_iter().find(|step| *step >= rough * 0.999);
    let step = step.unwrap_or(10.0 * power);
    (0..=(high / step * 0.999_999).ceil() as usize).map(|index| index as f64 * step).collect()
}

/// Round values around `low` to `high`: powers of ten, and 2 and 5 of each where there are few.
pub fn log_ticks(low: f64, high: f64) -> Vec<f64> {
    let (low, high) = (low.max(1e-9), high.max(low.max(1e-9)));
    let multiples: &[f64] = match high / low {
        ratio if ratio <= 50.0 => &[1.0, 2.0, 5.0],
        ratio if ratio <= 5e3 => &[1.0, 3.0],
        _ => &[1.0],
    };
    let decades = low.log10().floor() as i32..=high.log10().ceil() as i32;
    let all: Vec<f64> =
        decades.flat_map(|decade| multiples.iter().map(move |multiple| multiple * 10_f64.powi(decade))).collect();
    let first = all.iter().rposition(|tick| *tick <= low * 1.000_001).unwrap_or(0);
    let last = all.iter().position(|tick| *tick >= high * 0.999_999).unwrap_or(all.len() - 1);
    all[first..=last.max((first + 1).min(all.len() - 1))].to_vec()
}

/// Text that is safe inside HTML.
pub fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

/// A marker around a point; each look has its own.
pub fn marker(look: usize, x: f64, y: f64, title: &str) -> String {
    let title = if title.is_empty() { String::new() } else { format!("<title>{}</title>", escape(title)) };
    match look % 4 {
        0 => format!("<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"3.5\">{title}</circle>"),
        1 => format!("<rect x=\"{:.1}\" y=\"{:.1}\" width=\"6.6\" height=\"6.6\">{title}</rect>", x - 3.3, y - 3.3),
        2 => format!("<path d=\"M{x:.1} {:.1}l4.2 7.2h-8.4z\">{title}</path>", y - 4.4),
        _ => format!("<path d=\"M{x:.1} {:.1}l4.4 4.4l-4.4 4.4l-4.4 -4.4z\">{title}</path>", y - 4.4),
    }
}

impl Chart {
    /// The chart as an `<svg>` element.
    pub fn svg(&self) -> String {
        let points = || self.series.iter().flat_map(|series| series.points.iter());
        let x = Range::new(&self.x, points().map(|point| point.0));
        let bounds = self.bound.iter().map(|bound| bound.0);
        let y = Range::new(&self.y, points().map(|point| point.1).chain(bounds));
        let labels: Vec<String> = y.ticks.iter().map(|tick| (self.y.label)(*tick)).collect();
        let longest = labels.iter().map(|label| label.chars().count()).max().unwrap_or(0);
        let left = 14.0 + longest as f64 * DIGIT;
        // Where ticks are the values themselves, the first and the last marker need room.
        let inset = if self.x.ticks.is_some() { 18.0 } else { 0.0 };
        let (from, to) = (left + inset, WIDTH - RIGHT - inset);
        let across = |value: f64| from + x.share(value) * (to - from);
        let up = |value: f64| HEIGHT - BOTTOM - y.share(value) * (HEIGHT - BOTTOM - TOP);
        let mut svg = format!(
            "<svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" aria-label=\"{}\">\n",
            escape(&self.description)
        );
        let mut put = |text: std::fmt::Arguments<'_>| svg.write_fmt(text).expect("writing into a string cannot fail");
        put(format_args!("<text class=\"axis\" x=\"0\" y=\"14\">{}</text>\n", escape(&self.y.title)));
        for (tick, label) in y.ticks.iter().zip(&labels) {
            let at = up(*tick);
            put(format_args!("<path class=\"grid\" d=\"M{left:.1} {at:.1}H{:.1}\"/>", WIDTH - RIGHT));
            put(format_args!(
                "<text class=\"tick\" x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{label}</text>\n",
                left - 7.0,
                at + 4.0
            ));
        }
        let base = HEIGHT - BOTTOM;
        let mut free_from = f64::NEG_INFINITY;
        for tick in &x.ticks {
            let (at, label) = (across(*tick), (self.x.label)(*tick));
            put(format_args!("<path class=\"frame\" d=\"M{at:.1} {base:.1}v5\"/>"));
            let half = label.chars().count() as f64 * DIGIT / 2.0;
            if at - half < free_from {
                continue;
            }
            free_from = at + half + 6.0;
            // The last label must not be cut off.
            let at = at.min(WIDTH - half);
            put(format_args!(
                "<text class=\"tick\" x=\"{at:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{label}</text>\n",
                base + 18.0
            ));
        }
        put(format_args!("<path class=\"frame\" d=\"M{left:.1} {base:.1}H{:.1}\"/>\n", WIDTH - RIGHT));
        let middle = f64::midpoint(left, WIDTH - RIGHT);
        put(format_args!(
            "<text class=\"axis\" x=\"{middle:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>\n",
            HEIGHT - 6.0,
            escape(&self.x.title)
        ));
        if let Some((value, name)) = &self.bound {
            let at = up(*value);
            put(format_args!("<path class=\"bound\" d=\"M{left:.1} {at:.1}H{:.1}\"/>", WIDTH - RIGHT));
            put(format_args!(
                "<text class=\"tick\" x=\"{:.1}\" y=\"{:.1}\">{}</text>\n",
                left + 6.0,
                at - 5.0,
                escape(name)
            ));
        }
        for series in &self.series {
            let kind = if series.dashed { " dashed" } else { "" };
            put(format_args!("<g class=\"s{}{kind}\">", series.look % 4));
            let path: Vec<String> =
                series.points.iter().map(|(vx, vy, _)| format!("{:.1} {:.1}", across(*vx), up(*vy))).collect();
            if path.len() > 1 {
                put(format_args!("<path class=\"line\" d=\"M{}\"/>", path.join("L")));
            }
            for (vx, vy, title) in &series.points {
                put(format_args!("{}", marker(series.look, across(*vx), up(*vy), title)));
            }
            put(format_args!("</g>\n"));
        }
        svg.push_str("</svg>");
        svg
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn ticks_are_round_and_cover_the_values() {
        assert_eq!(linear_ticks(437.0), [0.0, 100.0, 200.0, 300.0, 400.0, 500.0]);
        assert_eq!(linear_ticks(1e6), [0.0, 2e5, 4e5, 6e5, 8e5, 1e6]);
        assert_eq!(log_ticks(3.0, 40.0), [2.0, 5.0, 10.0, 20.0, 50.0]);
        assert_eq!(log_ticks(1500.0, 2e8).first(), Some(&1e3));
        assert_eq!(log_ticks(7.0, 7.0), [5.0, 10.0]);
    }

    proptest! {
        #[test]
        fn any_values_lie_between_a_handful_of_ticks(a in 1e-3f64..1e9, factor in 1.0f64..1e6) {
            let (low, high) = (a, a * factor);
            for (ticks, least) in [(linear_ticks(high), 0.0), (log_ticks(low, high), low)] {
                prop_assert!(ticks.len() >= 2 && ticks.len() <= 11, "{:?}", ticks);
                prop_assert!(ticks.is_sorted());
                prop_assert!(ticks[0] <= least * 1.000_01 && ticks[ticks.len() - 1] >= high * 0.999_99, "{:?}", ticks);
            }
        }
    }

    #[test]
    fn points_stay_inside_the_chart_and_text_is_escaped() {
        let label: fn(f64) -> String = |value| format!("{value}");
        let chart = Chart {
            description: "a < b".to_owned(),
            x: Axis { title: "rate".to_owned(), scale: Scale::Linear, ticks: None, label },
            y: Axis { title: "latency".to_owned(), scale: Scale::Log, ticks: None, label },
            series: vec![Series {
                look: 0,
                dashed: false,
                points: vec![(1.0, 10.0, String::new()), (99.0, 1e6, String::new())],
            }],
            bound: Some((2e7, "bound".to_owned())),
        };
        let svg = chart.svg();
        assert!(svg.contains("a &lt; b") && !svg.contains("NaN"), "{svg}");
        for (name, most) in [("cx=\"", WIDTH), ("cy=\"", HEIGHT)] {
            for found in svg.split(name).skip(1) {
                let value: f64 = found.split('"').next().unwrap().parse().unwrap();
                assert!((0.0..=most).contains(&value), "{name}{value}");
            }
        }
    }
}
