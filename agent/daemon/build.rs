//! Lets the binary, and what is built beside it, find the TensorFlow Lite library in the same folder, or in `../lib/limpet` of an installed package.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    if std::env::var_os("CARGO_FEATURE_TFLITE").is_some() {
        println!("cargo:rustc-link-arg=-Wl,-rpath,$ORIGIN:$ORIGIN/../lib/limpet");
    }
}
