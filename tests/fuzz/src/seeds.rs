//! Writes what the fuzz targets start from, made of a real package: `fuzz-seeds PACKAGE OUT`, one folder for each target.

use std::collections::HashMap;
use std::io;
use std::path::Path;
use std::process::ExitCode;

use limpet_depot::{Package, chunk};
use limpet_wire::depot::{Name, Parts};

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [package, out] = &arguments[..] else {
        eprintln!("fuzz-seeds: expected the folder of a package and a folder to write to");
        return ExitCode::from(64);
    };
    match write(Path::new(package), Path::new(out)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("fuzz-seeds: {error}");
            ExitCode::FAILURE
        }
    }
}

fn write(package: &Path, out: &Path) -> Result<(), Box<dyn std::error::Error>> {
    let package = Package::open(package)?;
    let (index, cuts) = chunk::cut(&package, &HashMap::new())?;
    let seed = |target: &str, name: &str, bytes: &[u8]| -> io::Result<()> {
        let folder = out.join(target);
        std::fs::create_dir_all(&folder)?;
        std::fs::write(folder.join(name), bytes)
    };

    let mut short = index.clone();
    short.chunks.truncate(3);
    seed("index", "index", &short.to_bytes())?;
    let parts = Parts { parts: short.chunks.iter().map(|chunk| (chunk.raw, chunk.raw_len)).collect() };
    seed("index", "parts", &parts.to_bytes())?;
    let target = Name::target(index.package, &format!("{}-{}.index", index.model, index.version));
    let metadata = Name::Metadata { version: 7, role: "targets".to_owned() };
    let names = [Some(Name::Roots), Some(Name::Timestamp), Some(metadata), target, Some(Name::Chunk(index.package))];
    for (number, name) in names.into_iter().flatten().enumerate() {
        seed("index", &format!("name-{number}"), name.to_string().as_bytes())?;
    }

    // The shortest say as much as the longest, and change faster.
    let mut cuts: Vec<_> = cuts.iter().collect();
    cuts.sort_by_key(|cut| cut.stored.len());
    for (number, cut) in cuts.iter().take(4).enumerate() {
        let length = cut.reference.raw_len.to_le_bytes();
        let bytes = [&[3], &cut.reference.raw[..], &length, &cut.stored].concat();
        seed("chunk", &format!("chunk-{number}"), &bytes)?;
    }

    let small = out.join("package");
    shorten(&package, &small)?;
    seed("archive", "tar", &Package::open(&small)?.tar())?;
    seed("archive", "manifest", package.manifest_text().as_bytes())?;
    Ok(())
}

/// The same package with the beginning of every file alone, but for those that are read as text: an archive's form does
/// not depend on how much is in it, and a short one is changed faster.
fn shorten(package: &Package, out: &Path) -> io::Result<()> {
    std::fs::create_dir_all(out)?;
    for entry in std::fs::read_dir(package.path())? {
        let path = entry?.path();
        let Some(name) = path.file_name().filter(|_| path.is_file()) else { continue };
        let bytes = std::fs::read(&path)?;
        let is_text = path.extension().is_some_and(|extension| extension == "toml" || extension == "txt");
        let length = if is_text { bytes.len() } else { bytes.len().min(64) };
        std::fs::write(out.join(name), &bytes[..length])?;
    }
    Ok(())
}
