//! Lines of separated columns, each line one sample. Empty lines are skipped; spaces and double quotes around a column
//! are taken off, and a separator inside quotes is not supported: numbers have no need of it.

use super::{Gains, Message, Refusal, bounded, excerpt, parse_time};
use crate::config::codec::{Column, Csv};

/// A layout, and what is reused between messages.
#[derive(Debug)]
pub(super) struct CsvDecoder {
    config: Csv,
    /// (column from 0, channel), by column: a line is read once from left to right. The time's channel is one behind
    /// the last.
    slots: Vec<(usize, usize)>,
}

impl CsvDecoder {
    pub(super) fn new(config: &Csv) -> Self {
        Self { config: config.clone(), slots: Vec::with_capacity(config.columns.len() + 1) }
    }

    /// Appends the samples to `out`. Values that are no numbers but read as such ("NaN") are left for the caller to
    /// find.
    pub(super) fn decode(&mut self, payload: &[u8], gains: &Gains, out: &mut Vec<f32>) -> Result<Message, Refusal> {
        let text = str::from_utf8(payload).map_err(|error| {
            let before = &payload[..error.valid_up_to()];
            let line = 1 + before.iter().filter(|byte| **byte == b'\n').count();
            Refusal::BadCsv { line, problem: "found bytes that are no UTF-8, expected text".into() }
        })?;
        let mut lines =
            text.lines().enumerate().skip(self.config.skip_lines).filter(|(_, line)| !line.trim().is_empty());
        let header = if self.config.header { lines.next().map(|(_, line)| line).unwrap_or_default() } else { "" };
        self.find_columns(header)?;

        let mut time = None;
        for (index, line) in lines {
            let start = out.len();
            bounded(start + gains.channels)?;
            out.resize(start + gains.channels, 0.0);
            time = self.line(line, index + 1, gains, &mut out[start..])?;
        }
        if out.is_empty() {
            return Err(Refusal::BadCsv {
                line: text.lines().count(),
                problem: "there is no line with samples".into(),
            });
        }
        let time_ns = time.map(|text| parse_time(text, self.config.time_unit)).transpose()?;
        Ok(Message { time_ns, samples: out.len() / gains.channels, ..Message::default() })
    }

    /// Finds each channel's column, by number or in the header line.
    fn find_columns(&mut self, header: &str) -> Result<(), Refusal> {
        self.slots.clear();
        for (channel, column) in self.config.columns.iter().chain(&self.config.time).enumerate() {
            let index = match column {
                Column::Number(number) => number - 1,
                Column::Name(name) => header
                    .split(self.config.separator)
                    .position(|field| clean(field) == name)
                    .ok_or_else(|| Refusal::BadHeader(name.clone()))?,
            };
            self.slots.push((index, channel));
        }
        self.slots.sort_unstable();
        Ok(())
    }

    /// Reads one line into `sample`; gives the text of its time.
    fn line<'t>(
        &self,
        line: &'t str,
        number: usize,
        gains: &Gains,
        sample: &mut [f32],
    ) -> Result<Option<&'t str>, Refusal> {
        let mut fields = line.split(self.config.separator).enumerate();
        let mut current = fields.next();
        let mut time = None;
        for &(wanted, channel) in &self.slots {
            while current.is_some_and(|(index, _)| index < wanted) {
                current = fields.next();
            }
            let Some((_, field)) = current else {
                let found = line.split(self.config.separator).count();
                let problem = format!("found {found} columns, expected at least {}", wanted + 1);
                return Err(Refusal::BadCsv { line: number, problem });
            };
            let field = clean(field);
            match sample.get_mut(channel) {
                None => time = Some(field),
                Some(value) => {
                    let parsed: f64 = field.parse().map_err(|_| {
                        let found = excerpt(field);
                        Refusal::BadCsv {
                            line: number,
                            problem: format!("column {} is '{found}', expected a number", wanted + 1),
                        }
                    })?;
                    *value = gains.apply(channel, parsed);
                }
            }
        }
        Ok(time)
    }
}

fn clean(field: &str) -> &str {
    field.trim().trim_matches('"').trim()
}
