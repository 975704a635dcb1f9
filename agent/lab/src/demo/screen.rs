//! The demo on a terminal: one picture, redrawn many times a second, on the alternate screen.

use std::time::Duration;

use anyhow::Context;
use ratatui::crossterm::event::{self, Event, KeyCode, KeyEventKind, KeyModifiers};
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style, Stylize};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Block, Paragraph};
use ratatui::{DefaultTerminal, Frame};

use super::show::{Beat, Show};
use crate::motor::Condition;

/// Seconds that one column of the strip stands for.
const COLUMN_SECONDS: f64 = 0.5;
/// Columns before a label in the rows of the picture.
const MARGIN: usize = 12;

/// The terminal in raw mode. Dropping it gives the terminal back as it was.
pub struct Screen {
    terminal: DefaultTerminal,
}

impl Screen {
    /// Takes the terminal; a panic gives it back too.
    pub fn open() -> anyhow::Result<Self> {
        Ok(Self { terminal: ratatui::try_init().context("the terminal does not take a picture; try --plain")? })
    }

    /// Draws, and looks at the keys. False if the user wants to leave.
    pub fn draw(&mut self, show: &Show) -> anyhow::Result<bool> {
        self.terminal.draw(|frame| picture(frame, show)).context("drawing")?;
        while event::poll(Duration::ZERO).context("looking at the keyboard")? {
            if let Event::Key(key) = event::read().context("reading the keyboard")?
                && key.kind == KeyEventKind::Press
            {
                // In raw mode Ctrl-C is a key, not a signal.
                let interrupted = key.modifiers.contains(KeyModifiers::CONTROL) && key.code == KeyCode::Char('c');
                if interrupted || matches!(key.code, KeyCode::Char('q') | KeyCode::Esc) {
                    return Ok(false);
                }
            }
        }
        Ok(true)
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        // There is nobody to tell if the terminal has gone away.
        let _ = ratatui::try_restore();
    }
}

fn color(label: &str) -> Color {
    match label {
        "healthy" => Color::Green,
        "imbalance" => Color::Yellow,
        "bearing" => Color::Red,
        "looseness" => Color::Magenta,
        _ => Color::Gray,
    }
}

fn picture(frame: &mut Frame<'_>, show: &Show) {
    let classes = show.scores().len().max(4) as u16;
    let [title, trip, now, scores, latency, strip, log] = Layout::vertical([
        Constraint::Length(1),
        Constraint::Length(6),
        Constraint::Length(2),
        Constraint::Length(classes + 1),
        Constraint::Length(3),
        Constraint::Length(4),
        Constraint::Min(0),
    ])
    .areas(frame.area());
    draw_title(frame, title, show);
    draw_trip(frame, trip, show);
    draw_now(frame, now, show);
    draw_scores(frame, scores, show);
    draw_latency(frame, latency, show);
    draw_strip(frame, strip, show);
    draw_log(frame, log, show);
}

fn draw_title(frame: &mut Frame<'_>, area: Rect, show: &Show) {
    let time = match show.length() {
        Some(length) => format!("{:.0} of {length:.0} s · q leaves", show.now()),
        None => format!("{:.0} s · q leaves", show.now()),
    };
    frame.render_widget(Line::from(vec![" Limpet ".bold().reversed(), " ".into(), show.model().into()]), area);
    frame.render_widget(Line::from(time).right_aligned().dim(), area);
}

fn draw_trip(frame: &mut Frame<'_>, area: Rect, show: &Show) {
    let engine = show.latest().map_or(String::new(), |latest| format!("{}, {}", latest.engine, latest.variant));
    let text = vec![
        Line::from(vec![
            " motor, 3 axes × 3,200/s ".into(),
            "──▶".dim(),
            " broker ".into(),
            "──▶".dim(),
            " limpet ".bold(),
            "decode ▸ window ▸ features ▸ ".into(),
            "session".bold(),
            " ▸ decide".into(),
        ]),
        Line::from(format!("{:>25}     rumqttd     {:>38}", "virtual sensor, i16", engine)).dim(),
        Line::from(vec![" this view ".into(), "◀──".dim(), " broker ".into(), "◀──".dim(), " results, JSON".into()]),
        Line::from(format!(" {:.1} results/s", show.per_second())).dim(),
    ];
    frame.render_widget(Paragraph::new(text).block(Block::bordered().title(" the trip ").dim()), area);
}

fn draw_now(frame: &mut Frame<'_>, area: Rect, show: &Show) {
    let truth = show.truth().map_or("–", Condition::label);
    let mut spans =
        vec!["  motor has  ".dim(), Span::styled(format!("{truth:<12}"), Style::new().fg(color(truth)).bold())];
    if let Some(latest) = show.latest() {
        spans.push("  limpet says  ".dim());
        let style = Style::new().fg(color(&latest.label)).add_modifier(Modifier::BOLD | Modifier::REVERSED);
        spans.push(Span::styled(format!(" {} ", latest.label), style));
        spans.push(format!("  {:.2}", latest.score).into());
    } else {
        spans.push("  no result yet".dim());
    }
    frame.render_widget(Line::from(spans), area);
}

fn draw_scores(frame: &mut Frame<'_>, area: Rect, show: &Show) {
    let width = usize::from(area.width).saturating_sub(MARGIN + 8);
    let lines: Vec<_> = show
        .scores()
        .iter()
        .map(|(label, score)| {
            Line::from(vec![
                format!("  {label:<10}").into(),
                Span::styled(bar(*score, width), Style::new().fg(color(label))),
                format!(" {score:.2}").into(),
            ])
        })
        .collect();
    frame.render_widget(Paragraph::new(lines), area);
}

/// A bar of at most `width` columns for a share of 0 to 1, exact to an eighth of a column, padded with spaces.
fn bar(share: f32, width: usize) -> String {
    const EIGHTHS: [char; 8] = [' ', '▏', '▎', '▍', '▌', '▋', '▊', '▉'];
    let eighths = (f64::from(share.clamp(0.0, 1.0)) * width as f64 * 8.0).round() as usize;
    let mut bar = "█".repeat(eighths / 8);
    if eighths / 8 < width {
        bar.push(EIGHTHS[eighths % 8]);
        bar.push_str(&" ".repeat(width - eighths / 8 - 1));
    }
    bar
}

fn draw_latency(frame: &mut Frame<'_>, area: Rect, show: &Show) {
    let Some(parts) = show.recent_latency() else { return };
    let mut spans = vec!["  latency µs ".dim()];
    for (name, us) in parts.named() {
        spans.push(format!(" {name} ").dim());
        spans.push(if name == "total" { us.to_string().bold() } else { us.to_string().into() });
    }
    let note = Line::from("  median of the last results; wait is from the sample's arrival to the full window").dim();
    frame.render_widget(Paragraph::new(vec![Line::from(spans), note]), area);
}

fn draw_strip(frame: &mut Frame<'_>, area: Rect, show: &Show) {
    let width = usize::from(area.width).saturating_sub(MARGIN + 2);
    let beats: Vec<_> = show.recent().collect();
    let columns = strip(&beats, show.now(), width);
    let row = |name: &'static str, label: fn(&Beat) -> &str| {
        let mut spans = vec![format!("  {name:<10}").dim()];
        for beat in &columns {
            spans.push(match beat {
                Some(beat) => Span::styled("█", Style::new().fg(color(label(beat)))),
                None => Span::raw(" "),
            });
        }
        Line::from(spans)
    };
    let mut key = vec![format!("  {:<10}", "").into()];
    for label in ["healthy", "imbalance", "bearing", "looseness"] {
        key.push(Span::styled("█ ", Style::new().fg(color(label))));
        key.push(format!("{label}  ").dim());
    }
    let text = vec![row("motor", |beat| beat.truth.label()), row("limpet", |beat| &beat.label), Line::from(key)];
    frame.render_widget(Paragraph::new(text), area);
}

/// The last result of each column; the newest column is on the right and ends now.
fn strip<'a>(beats: &[&'a Beat], now: f64, width: usize) -> Vec<Option<&'a Beat>> {
    // Columns begin at multiples of their length, so that the strip moves on by whole columns and does not flicker.
    let newest = (now / COLUMN_SECONDS).floor();
    let mut columns = vec![None; width];
    for &beat in beats {
        let age = newest - (beat.at / COLUMN_SECONDS).floor();
        let age = age.max(0.0) as usize;
        if age < width {
            columns[width - 1 - age] = Some(beat);
        }
    }
    columns
}

fn draw_log(frame: &mut Frame<'_>, area: Rect, show: &Show) {
    let rows = usize::from(area.height);
    let mut lines: Vec<_> = show.log().rev().take(rows).map(|(_, line)| Line::from(format!(" {line}"))).collect();
    lines.reverse();
    frame.render_widget(Paragraph::new(lines), area);
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Instant;

    use limpet_wire::result::{LatencyUs, Span as Window, Verdict};
    use ratatui::Terminal;
    use ratatui::backend::TestBackend;

    use crate::demo::schedule::Schedule;

    fn text(show: &Show, width: u16, height: u16) -> String {
        let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
        terminal.draw(|frame| picture(frame, show)).unwrap();
        terminal.backend().to_string()
    }

    fn show() -> Show {
        let mut show = Show::new(Schedule::new(3200.0, Some(20.0)), "mqtt://127.0.0.1:1");
        let start = Instant::now();
        show.sensor_started(start);
        show.sensor_at(3200 * 8, 0);
        let mut record = crate::answer::tests::result(3200 * 8 - 64);
        record.window = Window { first: 3200 * 8 - 3072, last: 3200 * 8 - 1 };
        record.verdict = Verdict::Class {
            best: 1,
            labels: ["healthy", "bearing"].map(String::from).into(),
            scores: vec![0.25, 0.75],
        };
        record.latency = LatencyUs { wait: 1234, ..LatencyUs::default() };
        show.result(record, start + Duration::from_secs(8));
        show
    }

    #[test]
    fn the_picture_shows_truth_label_scores_latency_and_what_happened() {
        let picture = text(&show(), 100, 30);
        for expected in
            ["motor has  bearing", "limpet says   bearing", "0.75", "wait 1234", "limpet says bearing, 1.33 s into"]
        {
            assert!(picture.contains(expected), "'{expected}' is not in\n{picture}");
        }
    }

    #[test]
    fn a_picture_of_any_size_can_be_drawn() {
        for (width, height) in [(1, 1), (10, 5), (80, 24), (300, 100)] {
            text(&show(), width, height);
            text(&Show::new(Schedule::new(3200.0, None), ""), width, height);
        }
    }

    #[test]
    fn bars_are_as_wide_as_their_share() {
        assert_eq!(bar(0.5, 4), "██  ");
        assert_eq!(bar(1.0, 4), "████");
        assert_eq!(bar(0.03, 4), "▏   ");
        assert_eq!(bar(f32::NAN, 2), "  ");
    }

    #[test]
    fn the_newest_result_stands_on_the_right() {
        let beat = |at| Beat {
            at,
            truth: Condition::Healthy,
            label: "healthy".into(),
            right: true,
            latency: LatencyUs::default(),
        };
        let (old, new) = (beat(1.2), beat(9.9));
        let columns = strip(&[&old, &new], 10.0, 20);
        let at = |wanted: &Beat| columns.iter().position(|beat| beat.is_some_and(|beat| std::ptr::eq(beat, wanted)));
        assert_eq!((at(&new), at(&old)), (Some(18), Some(1)));
    }
}
