//! Puts the TensorFlow Lite library next to the binaries that this build makes, where their rpath looks for it.
//!
//! `cargo run` and `cargo test` would find it in tflitec's output folder; a binary that is started by hand, by a test or
//! by the demo would not.

use std::env;
use std::path::Path;

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    if env::var_os("CARGO_FEATURE_TFLITE").is_none() {
        return;
    }
    let target = env::var("TARGET").unwrap_or_default().to_uppercase().replace('-', "_");
    let named = format!("TFLITEC_PREBUILT_PATH_{target}");
    println!("cargo:rerun-if-env-changed={named}");
    println!("cargo:rerun-if-env-changed=TFLITEC_PREBUILT_PATH");
    let Some(library) = env::var_os(&named).or_else(|| env::var_os("TFLITEC_PREBUILT_PATH")) else { return };
    println!("cargo:rerun-if-changed={}", library.display());
    let out = env::var_os("OUT_DIR").expect("cargo sets OUT_DIR for build scripts");
    // target/<profile>/build/<crate>-<hash>/out
    let profile = Path::new(&out).ancestors().nth(3).expect("cargo's output folder lies four folders deep");
    let (Some(name), library) = (Path::new(&library).file_name(), Path::new(&library)) else { return };
    if let Err(error) = std::fs::copy(library, profile.join(name)) {
        println!(
            "cargo:warning=the TensorFlow Lite library {} cannot be copied: {error}; run scripts/setup",
            library.display()
        );
    }
}
