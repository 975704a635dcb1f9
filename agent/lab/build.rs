//! Lets the binary find the TensorFlow Lite library beside itself, or in `../lib/limpet` of an installed package.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    if std::env::var_os("CARGO_FEATURE_TFLITE").is_some() {
        println!("cargo:rustc-link-arg-bins=-Wl,-rpath,$ORIGIN:$ORIGIN/../lib/limpet");
    }
}
