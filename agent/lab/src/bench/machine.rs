//! What the figures were measured on.

use std::collections::BTreeSet;
use std::fs;

use serde::Serialize;

/// Instruction sets that matter to inference, as Linux names them.
const TELLING: [&str; 17] = [
    "sse4_1",
    "avx",
    "fma",
    "avx2",
    "avx_vnni",
    "avx512f",
    "avx512_vnni",
    "amx_int8",
    "neon",
    "vfpv4",
    "asimd",
    "asimdhp",
    "asimddp",
    "i8mm",
    "bf16",
    "sve",
    "sve2",
];
/// A load average of more than this share of the cores makes times longer than they need be.
const BUSY: f64 = 0.5;

/// The machine, as it was when the measurement began.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Machine {
    /// Model of the CPU.
    pub cpu: String,
    /// Cores that this process may use.
    pub cores: usize,
    /// Its instruction sets that matter to inference.
    pub instruction_sets: Vec<&'static str>,
    /// Average number of runnable threads over the last minute, where the kernel tells.
    pub load_average: Option<f64>,
    /// Whether others use so much of it that the figures suffer.
    pub busy: bool,
}

impl Machine {
    /// This one, now.
    pub fn now() -> Self {
        let text = |path: &str| fs::read_to_string(path).unwrap_or_default();
        let cpuinfo = text("/proc/cpuinfo");
        let board = text("/proc/device-tree/model");
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let load_average = text("/proc/loadavg").split_ascii_whitespace().next().and_then(|load| load.parse().ok());
        Self {
            cpu: model(&cpuinfo, &board),
            cores,
            instruction_sets: instruction_sets(&cpuinfo),
            load_average,
            busy: load_average.is_some_and(|load| load > BUSY * cores as f64),
        }
    }

    /// In one line.
    pub fn describe(&self) -> String {
        let sets = match self.instruction_sets.is_empty() {
            true => "unknown".to_owned(),
            false => self.instruction_sets.join(" "),
        };
        let cores = if self.cores == 1 { "1 core".to_owned() } else { format!("{} cores", self.cores) };
        let load = self.load_average.map_or("unknown".to_owned(), |load| format!("{load:.2}"));
        format!("{}, {cores}, instruction sets {sets}, load average {load}", self.cpu)
    }

    /// What a reader of the figures must know, if others use the machine.
    pub fn warning(&self) -> Option<String> {
        self.load_average.filter(|_| self.busy).map(|load| {
            format!(
                "the machine was busy at the start (load average {load:.2} on {} cores): latencies are longer and rates \
                 lower than on an idle one",
                self.cores
            )
        })
    }
}

fn model(cpuinfo: &str, board: &str) -> String {
    let value = |key: &str| {
        cpuinfo.lines().find_map(|line| {
            let (found, value) = line.split_once(':')?;
            (found.trim() == key).then(|| value.trim().to_owned())
        })
    };
    let board = board.trim_matches(['\0', '\n', ' ']);
    match (value("model name"), board.is_empty()) {
        (Some(model), _) => model,
        (None, false) => board.to_owned(),
        (None, true) => value("CPU part").map_or("unknown CPU".to_owned(), |part| format!("CPU part {part}")),
    }
}

fn instruction_sets(cpuinfo: &str) -> Vec<&'static str> {
    let flags: BTreeSet<&str> = cpuinfo
        .lines()
        .filter_map(|line| line.split_once(':'))
        .filter(|(key, _)| matches!(key.trim(), "flags" | "Features"))
        .flat_map(|(_, flags)| flags.split_ascii_whitespace())
        .collect();
    TELLING.into_iter().filter(|name| flags.contains(name)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn model_and_instruction_sets_are_read_on_x86_and_on_arm() {
        let x86 = "processor\t: 0\nmodel name\t: Some EPYC\nflags\t\t: fpu sse4_1 avx2 avx512_vnni\n";
        assert_eq!(model(x86, ""), "Some EPYC");
        assert_eq!(instruction_sets(x86), ["sse4_1", "avx2", "avx512_vnni"]);
        let arm = "processor\t: 0\nFeatures\t: fp asimd asimddp\nCPU part\t: 0xd08\n";
        assert_eq!(model(arm, "Raspberry Pi 4 Model B\0"), "Raspberry Pi 4 Model B");
        assert_eq!(model(arm, ""), "CPU part 0xd08");
        assert_eq!(instruction_sets(arm), ["asimd", "asimddp"]);
    }

    #[test]
    fn a_busy_machine_is_warned_of() {
        let machine = |load| Machine { load_average: Some(load), busy: load > 1.0, ..Machine::now() };
        assert!(machine(3.0).warning().is_some_and(|text| text.contains("3.00")));
        assert_eq!(machine(0.1).warning(), None);
    }
}
