//! `limpet-lab pack`: a folder becomes one `.limpet` file.
//!
//! The file is the same whoever makes it and whenever: a sorted tar without times or owners, compressed. A package is
//! refused if its manifest is wrong, a file is missing, its golden vectors would let a wrong model pass, or its graphs do
//! not give their golden outputs on any engine of this build.

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use limpet_depot::{Package, run_graphs};

/// Whether graphs are run.
#[derive(clap::Args, Clone, Copy, Default)]
pub struct ProveArgs {
    /// Do not run the graphs against their golden vectors
    #[arg(long)]
    pub no_prove: bool,
}

#[derive(clap::Args)]
pub struct PackArgs {
    /// Folder with model.toml, the graphs, golden.safetensors and labels.txt
    dir: PathBuf,
    /// File to write; by default <name>-<version>.limpet in the current folder
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    #[command(flatten)]
    prove: ProveArgs,
}

/// Runs `limpet-lab pack`.
pub fn run(args: &PackArgs) -> anyhow::Result<()> {
    let package = open(&args.dir)?;
    let output = args.output.clone().unwrap_or_else(|| {
        let manifest = package.manifest();
        PathBuf::from(format!("{}-{}.limpet", manifest.name, manifest.version))
    });
    let not_run = run_or_warn(&package, args.prove)?;
    package.write(&output)?;
    println!("{} ({}){}", output.display(), package.digest(), not_run.unwrap_or_default());
    Ok(())
}

/// Opens a package, and refuses golden vectors that prove nothing as far as that shows without running the graphs.
pub fn open(path: &Path) -> anyhow::Result<Package> {
    let package = Package::open(path)?;
    package.check_golden().with_context(|| path.display().to_string())?;
    Ok(package)
}

/// Runs the graphs of a package against its golden vectors, and warns of those that could not be. Gives what the last
/// line is to say of those.
///
/// # Errors
/// If what one of them gives is wrong.
pub fn run_or_warn(package: &Package, args: ProveArgs) -> anyhow::Result<Option<String>> {
    let files = || package.manifest().variants.iter().map(|variant| variant.file.as_str());
    let not_run: Vec<String> = if args.no_prove {
        eprintln!(
            "limpet-lab: warning: --no-prove: no graph was run, so nobody knows whether its golden outputs are right"
        );
        files().map(str::to_owned).collect()
    } else {
        let ran = run_graphs(package, &limpet_engine::engines())?;
        for doubt in &ran.doubts {
            eprintln!("limpet-lab: warning: {doubt}; gateways use another engine for it");
        }
        for unread in &ran.unread {
            eprintln!(
                "limpet-lab: warning: {unread}, so it was not run and nobody knows whether its golden outputs are right; \
                 use a build with that engine, or `limpet prove` on a gateway"
            );
        }
        files().filter(|file| !ran.right.iter().any(|right| right == file)).map(str::to_owned).collect()
    };
    Ok((!not_run.is_empty()).then(|| format!("; not run: {}", not_run.join(", "))))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A proof starts this program again, which is here one of tests; end-to-end tests run the real one.
    const NOT_HERE: ProveArgs = ProveArgs { no_prove: true };

    /// The model that ships with the project.
    fn motor_health() -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/motor-health")
    }

    #[test]
    fn a_packed_model_opens_again_as_the_same_package() {
        let scratch = tempfile::tempdir().unwrap();
        let output = scratch.path().join("m.limpet");
        run(&PackArgs { dir: motor_health(), output: Some(output.clone()), prove: NOT_HERE }).unwrap();
        let (packed, folder) = (Package::open(&output).unwrap(), Package::open(&motor_health()).unwrap());
        assert_eq!(packed.digest(), folder.digest());
    }

    #[test]
    fn a_model_without_golden_vectors_is_not_packed() {
        let scratch = tempfile::tempdir().unwrap();
        for entry in std::fs::read_dir(motor_health()).unwrap() {
            let path = entry.unwrap().path();
            if path.extension().is_none_or(|extension| extension != "safetensors") {
                std::fs::copy(&path, scratch.path().join(path.file_name().unwrap())).unwrap();
            }
        }
        let output = scratch.path().join("m.limpet");
        let args = PackArgs { dir: scratch.path().to_owned(), output: Some(output.clone()), prove: NOT_HERE };
        let error = run(&args).unwrap_err();
        assert!(format!("{error:#}").contains("golden"), "{error:#}");
        assert!(!output.exists());
    }
}
