//! `limpet-lab pack`: a folder becomes one `.limpet` file.
//!
//! The file is the same whoever makes it and whenever: a sorted tar without times or owners, compressed. A package is
//! refused if its manifest is wrong, a file is missing, or its golden vectors would let a wrong model pass.

use std::path::PathBuf;

use limpet_depot::package;

#[derive(clap::Args)]
pub struct PackArgs {
    /// Folder with model.toml, the graphs, golden.safetensors and labels.txt
    dir: PathBuf,
    /// File to write; by default <name>-<version>.limpet in the current folder
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
}

/// Runs `limpet-lab pack`.
pub fn run(args: &PackArgs) -> anyhow::Result<()> {
    let output = match &args.output {
        Some(output) => output.clone(),
        None => {
            let package = package::Package::open(&args.dir)?;
            let manifest = package.manifest();
            PathBuf::from(format!("{}-{}.limpet", manifest.name, manifest.version))
        }
    };
    let package = package::pack(&args.dir, &output)?;
    println!("{} ({})", output.display(), package.digest());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    /// The model that ships with the project.
    fn motor_health() -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/motor-health")
    }

    #[test]
    fn a_packed_model_opens_again_as_the_same_package() {
        let scratch = tempfile::tempdir().unwrap();
        let output = scratch.path().join("m.limpet");
        run(&PackArgs { dir: motor_health(), output: Some(output.clone()) }).unwrap();
        let (packed, folder) =
            (package::Package::open(&output).unwrap(), package::Package::open(&motor_health()).unwrap());
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
        let error = run(&PackArgs { dir: scratch.path().to_owned(), output: Some(output.clone()) }).unwrap_err();
        assert!(error.to_string().contains("golden"), "{error}");
        assert!(!output.exists());
    }
}
