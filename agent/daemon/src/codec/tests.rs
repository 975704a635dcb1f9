//! Payloads good and bad, for every codec.

use super::image::{ColorOrder, ImageSpec, Layout, PictureFormat};
use proptest::prelude::*;

use super::*;
use crate::config::codec::NumberType;

/// A codec as it stands in the configuration.
fn codec(text: &str) -> Codec {
    #[derive(serde::Deserialize)]
    struct Holder {
        codec: Codec,
    }
    toml::from_str::<Holder>(&format!("codec = {text}")).unwrap().codec
}

fn fractions(values: &[&str]) -> Vec<Fraction> {
    values.iter().map(|text| text.parse().unwrap()).collect()
}

fn decoder(text: &str, channels: usize) -> Decoder {
    Decoder::new(&codec(text), channels, &[], &[]).unwrap()
}

fn good(decoder: &mut Decoder, payload: impl AsRef<[u8]>) -> (Message, Vec<f32>) {
    let mut out = vec![9.0];
    let message = decoder.decode(payload.as_ref(), &mut out).unwrap();
    assert_eq!(message.samples * decoder.channels(), out.len());
    (message, out)
}

/// The reason and sentence of a refusal.
fn bad(decoder: &mut Decoder, payload: impl AsRef<[u8]>) -> (&'static str, String) {
    let mut out = vec![9.0];
    let refusal = decoder.decode(payload.as_ref(), &mut out).unwrap_err();
    assert!(out.is_empty(), "a refused payload leaves no samples");
    (refusal.reason(), refusal.to_string())
}

#[test]
fn raw_numbers_of_every_type_are_scaled_per_channel() {
    let scaled = |number: &str| {
        let config = codec(&format!("{{ raw = {{ type = \"{number}\", channels = 2 }} }}"));
        Decoder::new(&config, 2, &fractions(&["1/2", "10"]), &fractions(&["1", "-1"])).unwrap()
    };
    assert_eq!(good(&mut scaled("i8"), [254, 3]).1, [0.0, 29.0]);
    assert_eq!(good(&mut scaled("u8"), [254, 3]).1, [128.0, 29.0]);
    assert_eq!(good(&mut scaled("i16"), [0xfe, 0xff, 3, 0, 4, 0, 0, 0x80]).1, [0.0, 29.0, 3.0, -327_681.0]);
    assert_eq!(good(&mut scaled("i32"), [[0xfe, 0xff, 0xff, 0xff], [3, 0, 0, 0]].concat()).1, [0.0, 29.0]);
    let floats = [2.5f32.to_le_bytes(), (-0.5f32).to_le_bytes()].concat();
    assert_eq!(good(&mut scaled("f32"), floats).1, [2.25, -6.0]);
}

#[test]
fn a_large_i32_keeps_its_last_digits_when_an_offset_brings_it_near_zero() {
    let config = codec("{ raw = { type = \"i32\" } }");
    let mut decoder = Decoder::new(&config, 1, &[], &fractions(&["-2000000000"])).unwrap();
    assert_eq!(good(&mut decoder, 2_000_000_001i32.to_le_bytes()).1, [1.0]);
}

#[test]
fn a_raw_header_gives_time_sequence_and_tag_in_the_configured_order() {
    let mut decoder = decoder(
        "{ raw = { type = \"u8\", header = [{ tag = \"u64le\" }, { time = \"u64le ns\" }, { sequence = \"u32le\" }] } }",
        1,
    );
    let mut payload = 7u64.to_le_bytes().to_vec();
    payload.extend(1_795_428_902_123_456_789u64.to_le_bytes());
    payload.extend(42u32.to_le_bytes());
    payload.extend([1, 2, 3]);
    let (message, samples) = good(&mut decoder, &payload);
    let expected = Message { time_ns: Some(1_795_428_902_123_456_789), sequence: Some(42), tag: Some(7), samples: 3 };
    assert_eq!((message, samples), (expected, vec![1.0, 2.0, 3.0]));

    payload[8..16].fill(0xff);
    assert_eq!(bad(&mut decoder, &payload).0, "bad_time");
    let (reason, sentence) = bad(&mut decoder, &payload[..20]);
    assert_eq!(reason, "payload_length");
    assert!(sentence.contains("20 bytes") && sentence.contains("1 bytes per sample"), "{sentence}");
}

#[test]
fn a_raw_payload_of_the_wrong_length_is_refused_whole() {
    let mut decoder = decoder("{ raw = { type = \"i16\", channels = 3 } }", 3);
    for length in [0, 1, 2, 5, 7, 13] {
        assert_eq!(bad(&mut decoder, vec![0; length]).0, "payload_length", "{length}");
    }
    assert_eq!(bad(&mut decoder, vec![0; VALUES_MAX.div_ceil(3) * 6]).0, "too_many_samples");
}

#[test]
fn numbers_that_are_none_are_refused_with_their_place() {
    let mut raw = decoder("{ raw = { type = \"f32\" } }", 1);
    for value in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let (reason, sentence) = bad(&mut raw, [1f32.to_le_bytes(), value.to_le_bytes()].concat());
        assert_eq!(reason, "not_a_number");
        assert!(sentence.starts_with("value 1 of the message is"), "{sentence}");
    }
    let mut json = decoder("{ json = {} }", 1);
    for payload in ["[1, null]", "[1, \"x\"]", "[1, true]", "[1, 1e308]", "true"] {
        assert_eq!(bad(&mut json, payload).0, "not_a_number", "{payload}");
    }
    let mut csv = decoder("{ csv = { columns = [1] } }", 1);
    for payload in ["nan", "1\ninf", "1e308"] {
        assert_eq!(bad(&mut csv, payload).0, "not_a_number", "{payload}");
    }
}

#[test]
fn raw_payloads_need_no_memory_once_the_buffer_has_grown() {
    let mut decoder = decoder("{ raw = { type = \"i16\" } }", 1);
    let mut out = Vec::new();
    decoder.decode(&[1; 490], &mut out).unwrap();
    let (place, capacity) = (out.as_ptr(), out.capacity());
    for _ in 0..100 {
        decoder.decode(&[2; 490], &mut out).unwrap();
    }
    assert_eq!((out.as_ptr(), out.capacity()), (place, capacity));
}

#[test]
fn json_holds_samples_in_every_documented_shape() {
    for (config, channels, payload, expected) in [
        ("{}", 1, "2.5", vec![2.5]),
        ("{}", 1, "[1, 2, 3]", vec![1.0, 2.0, 3.0]),
        ("{}", 1, "[[1], [2]]", vec![1.0, 2.0]),
        ("{ channels = 2 }", 2, "[1, 2]", vec![1.0, 2.0]),
        ("{ channels = 2 }", 2, "[[1, 2], [3, 4]]", vec![1.0, 2.0, 3.0, 4.0]),
        ("{ value = \"/a/0/v\" }", 1, "{\"a\": [{\"v\": -1e2}]}", vec![-100.0]),
        ("{ value = [\"/x\", \"/y\"] }", 2, "{\"y\": 2, \"x\": 1}", vec![1.0, 2.0]),
        ("{ value = [\"/x\", \"/y\"] }", 2, "{\"y\": [2, 4], \"x\": [1, 3]}", vec![1.0, 2.0, 3.0, 4.0]),
    ] {
        let mut decoder = decoder(&format!("{{ json = {config} }}"), channels);
        assert_eq!(good(&mut decoder, payload).1, expected, "{config} {payload}");
    }
}

#[test]
fn json_that_does_not_fit_says_what_was_expected() {
    for (config, channels, payload, reason) in [
        ("{}", 1, "", "broken_json"),
        ("{}", 1, "{\"x\": ", "broken_json"),
        ("{}", 1, "1 2", "broken_json"),
        ("{}", 1, "NaN", "broken_json"),
        ("{}", 1, "\u{1}", "broken_json"),
        ("{}", 1, "[]", "wrong_shape"),
        ("{}", 1, "[[1, 2]]", "wrong_shape"),
        ("{}", 1, "{}", "not_a_number"),
        ("{ channels = 2 }", 2, "1", "wrong_shape"),
        ("{ channels = 2 }", 2, "[1, 2, 3]", "wrong_shape"),
        ("{ channels = 2 }", 2, "[[1, 2], 3]", "wrong_shape"),
        ("{ value = \"/x\" }", 1, "{\"y\": 1}", "missing_field"),
        ("{ value = [\"/x\", \"/y\"] }", 2, "{\"x\": 1}", "missing_field"),
        ("{ value = [\"/x\", \"/y\"] }", 2, "{\"x\": [1], \"y\": [1, 2]}", "wrong_shape"),
        ("{ value = [\"/x\", \"/y\"] }", 2, "{\"x\": [], \"y\": []}", "wrong_shape"),
        ("{ value = \"/x\", time = \"/t\" }", 1, "{\"x\": 1}", "missing_field"),
        ("{ value = \"/x\", time = \"/t\" }", 1, "{\"x\": 1, \"t\": 5}", "bad_time"),
        ("{ value = \"/x\", time = \"/t\", time_unit = \"s\" }", 1, "{\"x\": 1, \"t\": \"now\"}", "bad_time"),
    ] {
        let mut decoder = decoder(&format!("{{ json = {config} }}"), channels);
        let (found, sentence) = bad(&mut decoder, payload);
        assert_eq!(found, reason, "{config} {payload}: {sentence}");
    }
    let deep = "[".repeat(100_000);
    assert_eq!(bad(&mut decoder("{ json = {} }", 1), deep).0, "broken_json");
}

#[test]
fn times_are_read_exactly_in_every_unit() {
    let ns = 1_795_428_902_123_456_789i64;
    for (unit, text, expected) in [
        ("rfc3339", "\"2026-11-23T10:15:02.123456789Z\"", ns),
        ("rfc3339", "\"2026-11-23T11:15:02.123456789+01:00\"", ns),
        ("s", "1795428902.123456", 1_795_428_902_123_456_000),
        ("s", "\"1795428902.123456789\"", ns),
        ("ms", "1795428902123", 1_795_428_902_123_000_000),
        ("us", "1795428902123456.5", 1_795_428_902_123_456_500),
        ("ns", "1795428902123456789", ns),
        ("s", "-1", -1_000_000_000),
    ] {
        let mut decoder =
            decoder(&format!("{{ json = {{ value = \"/x\", time = \"/t\", time_unit = \"{unit}\" }} }}"), 1);
        let (message, _) = good(&mut decoder, format!("{{\"x\": 1, \"t\": {text}}}"));
        assert_eq!(message.time_ns, Some(expected), "{unit} {text}");
    }
    for text in ["", "-", "1.2.3", "1e9", "99999999999", "9999999999999999999999", " 1", "+1", "0x1"] {
        assert!(parse_time(text, TimeUnit::S).is_err(), "{text}");
    }
}

#[test]
fn csv_takes_columns_by_number_or_by_name() {
    let mut by_number = decoder("{ csv = { columns = [3, 1], time = 2, time_unit = \"s\" } }", 2);
    let (message, samples) = good(&mut by_number, "1,100,2\r\n3 , 101.5 ,4\n\n");
    assert_eq!((message.time_ns, samples), (Some(101_500_000_000), vec![2.0, 1.0, 4.0, 3.0]));

    let mut by_name =
        decoder("{ csv = { columns = [\"y\", \"x\"], header = true, skip_lines = 1, separator = \";\" } }", 2);
    let (message, samples) = good(&mut by_name, "sensor 7\nx;\"y\"\n1;2\n3;4");
    assert_eq!((message, samples), (Message { samples: 2, ..Message::default() }, vec![2.0, 1.0, 4.0, 3.0]));

    let mut twice = decoder("{ csv = { columns = [1, 1] } }", 2);
    assert_eq!(good(&mut twice, "5").1, [5.0, 5.0]);
}

#[test]
fn csv_that_does_not_fit_names_line_and_column() {
    let mut numbers = decoder("{ csv = { columns = [1, 2] } }", 2);
    for (payload, expected) in [
        ("1,2\n3", "line 2: found 1 columns, expected at least 2"),
        ("1,2\n3,x", "line 2: column 2 is 'x', expected a number"),
        ("", "there is no line with samples"),
        ("\n \n", "there is no line with samples"),
    ] {
        let (reason, sentence) = bad(&mut numbers, payload);
        assert_eq!((reason, sentence.contains(expected)), ("bad_csv", true), "{payload}: {sentence}");
    }
    assert!(bad(&mut numbers, b"1,2\n\xff,1").1.contains("line 2: found bytes that are no UTF-8"));
    let mut named = decoder("{ csv = { columns = [\"x\"], header = true } }", 1);
    assert_eq!(bad(&mut named, "y\n1").0, "bad_header");
    assert_eq!(bad(&mut named, "x\n").0, "bad_csv");
}

#[test]
fn a_decoder_refuses_a_model_with_other_channels() {
    let error = Decoder::new(&codec("{ raw = { type = \"i16\", channels = 3 } }"), 2, &[], &[]).unwrap_err();
    assert!(error.contains("holds 3 channels and the model expects 2"), "{error}");
    assert!(
        Decoder::new(&codec("{ json = {} }"), 1, &fractions(&["1", "2"]), &[]).unwrap_err().contains("one per channel")
    );
    assert!(Decoder::new(&codec("{ image = {} }"), 1, &[], &[]).unwrap_err().contains("pictures"));
}

#[test]
fn a_message_that_must_be_one_window_has_its_exact_length() {
    let mut decoder = decoder("{ raw = { type = \"i16\" } }", 1);
    let mut out = Vec::new();
    assert_eq!(decoder.decode_window(&[0; 20], 10, &mut out).unwrap().samples, 10);
    let refusal = decoder.decode_window(&[0; 18], 10, &mut out).unwrap_err();
    assert_eq!((refusal.reason(), out.len()), ("payload_length", 0));
    assert!(refusal.to_string().contains("holds 9 values, expected exactly 10"));
}

#[test]
fn quantized_windows_pass_through_as_they_are() {
    let raw = codec("{ raw = { type = \"i8\", header = [{ tag = \"u64le\" }] } }");
    let decoder = QuantizedDecoder::new(&raw, NumberType::I8, 3).unwrap();
    let mut out = vec![1];
    let payload = [&5u64.to_le_bytes()[..], &[128, 0, 127]].concat();
    assert_eq!(decoder.decode(&payload, &mut out).unwrap(), Message { tag: Some(5), samples: 1, ..Message::default() });
    assert_eq!(out, [128, 0, 127]);
    assert_eq!(decoder.decode(&payload[..10], &mut out).unwrap_err().reason(), "payload_length");
    assert!(out.is_empty());

    let json = QuantizedDecoder::new(&codec("{ json = { value = \"/w\" } }"), NumberType::I8, 3).unwrap();
    json.decode(b"{\"w\": [-128, 0, 127]}", &mut out).unwrap();
    assert_eq!(out, [128, 0, 127]);
    for (payload, reason) in [
        ("{\"w\": [-129, 0, 1]}", "out_of_range"),
        ("{\"w\": [0.5, 0, 1]}", "out_of_range"),
        ("{\"w\": [0, 1]}", "payload_length"),
        ("{\"w\": 3}", "wrong_shape"),
        ("{}", "missing_field"),
        ("[", "broken_json"),
    ] {
        assert_eq!(json.decode(payload.as_bytes(), &mut out).unwrap_err().reason(), reason, "{payload}");
        assert!(out.is_empty());
    }
    assert!(QuantizedDecoder::new(&raw, NumberType::U8, 3).unwrap_err().contains("set the type to u8"));
    assert!(QuantizedDecoder::new(&codec("{ csv = { columns = [1] } }"), NumberType::U8, 3).is_err());
}

fn spec(format: PictureFormat, size: (u32, u32), channels: usize) -> ImageSpec {
    ImageSpec {
        format,
        raw_size: Some(size),
        size,
        channels,
        resize: None,
        crop: None,
        order: ColorOrder::Rgb,
        layout: Layout::Nhwc,
        mean: vec![],
        std: vec![],
    }
}

fn features(spec: ImageSpec, payload: &[u8]) -> Vec<f32> {
    let mut out = vec![9.0];
    let decoder = ImageDecoder::new(spec).unwrap();
    decoder.decode(payload, &mut out).unwrap();
    assert_eq!(out.len(), decoder.values());
    out
}

#[test]
fn pixels_are_normalized_in_the_order_and_layout_of_the_graph() {
    let pixels = [10, 20, 30, 40, 50, 60];
    let rgb = spec(PictureFormat::Rgb8, (2, 1), 3);
    assert_eq!(features(rgb.clone(), &pixels), [10.0, 20.0, 30.0, 40.0, 50.0, 60.0]);
    let bgr =
        ImageSpec { order: ColorOrder::Bgr, mean: vec![30.0, 20.0, 10.0], std: vec![1.0, 2.0, 10.0], ..rgb.clone() };
    assert_eq!(features(bgr, &pixels), [0.0, 0.0, 0.0, 30.0, 15.0, 3.0]);
    let planar = ImageSpec { layout: Layout::Nchw, ..rgb };
    assert_eq!(features(planar, &pixels), [10.0, 40.0, 20.0, 50.0, 30.0, 60.0]);
    let gray = ImageSpec { channels: 3, ..spec(PictureFormat::Gray8, (1, 1), 1) };
    assert_eq!(features(gray, &[7]), [7.0, 7.0, 7.0]);
}

#[test]
fn a_picture_is_resized_and_cropped_from_the_middle() {
    let pixels: Vec<u8> = (0..16).collect();
    let crop = ImageSpec { size: (2, 2), crop: Some((2, 2)), ..spec(PictureFormat::Gray8, (4, 4), 1) };
    assert_eq!(features(crop, &pixels), [5.0, 6.0, 9.0, 10.0]);
    let resize = ImageSpec { size: (1, 1), resize: Some((1, 1)), ..spec(PictureFormat::Gray8, (2, 2), 1) };
    assert_eq!(features(resize, &[0, 100, 100, 200]), [100.0]);
}

#[test]
fn jpeg_and_png_are_decoded_and_bad_ones_refused() {
    let picture =
        ::image::RgbImage::from_fn(
            8,
            4,
            |x, _| if x < 4 { ::image::Rgb([200, 0, 0]) } else { ::image::Rgb([0, 0, 200]) },
        );
    for (format, file, tolerance) in
        [(PictureFormat::Png, ::image::ImageFormat::Png, 0.0), (PictureFormat::Jpeg, ::image::ImageFormat::Jpeg, 40.0)]
    {
        let mut payload = Vec::new();
        picture.write_to(&mut std::io::Cursor::new(&mut payload), file).unwrap();
        let found = features(spec(format, (8, 4), 3), &payload);
        let worst = found.iter().zip(picture.as_raw()).map(|(a, b)| (a - f32::from(*b)).abs()).fold(0.0, f32::max);
        assert!(worst <= tolerance, "{format:?} differs by {worst}");

        let other = ImageDecoder::new(spec(format, (4, 4), 3)).unwrap();
        let refusal = other.decode(&payload, &mut Vec::new()).unwrap_err();
        assert!(refusal.to_string().contains("it is 8 x 4, expected 4 x 4"), "{refusal}");
        for damaged in [&payload[..payload.len() / 3], b"", b"\x89PNG\r\n\x1a\n"] {
            assert_eq!(other.decode(damaged, &mut Vec::new()).unwrap_err().reason(), "bad_image");
        }
    }
}

#[test]
fn a_picture_that_claims_to_be_huge_is_refused_before_memory_is_taken() {
    // A PNG header of 60,000 x 60,000 pixels with no data behind it.
    let mut payload = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\0\xea\x60\0\0\xea\x60\x08\x02\0\0\0".to_vec();
    payload.extend([0x5e, 0x4d, 0x2b, 0x6e]);
    let decoder = ImageDecoder::new(spec(PictureFormat::Png, (4, 4), 3)).unwrap();
    assert_eq!(decoder.decode(&payload, &mut Vec::new()).unwrap_err().reason(), "bad_image");
}

#[test]
fn a_manifest_that_contradicts_itself_is_refused() {
    let good = spec(PictureFormat::Png, (4, 4), 3);
    for (bad, expected) in [
        (ImageSpec { channels: 2, ..good.clone() }, "expected 1 (gray) or 3 (color)"),
        (ImageSpec { std: vec![1.0, 0.0, 1.0], ..good.clone() }, "holds a 0"),
        (ImageSpec { mean: vec![1.0], ..good.clone() }, "one per channel"),
        (ImageSpec { size: (0, 4), ..good.clone() }, "out of bounds"),
        (ImageSpec { resize: Some((5, 5)), ..good.clone() }, "model takes 4 x 4"),
        (ImageSpec { crop: Some((9, 9)), ..good.clone() }, "larger than the picture"),
        (ImageSpec { format: PictureFormat::Rgb8, raw_size: None, ..good }, "does not carry its size"),
    ] {
        let error = ImageDecoder::new(bad).unwrap_err();
        assert!(error.contains(expected), "{error}");
    }
}

const CODECS: [(&str, usize); 8] = [
    ("{ raw = { type = \"i16\", channels = 3 } }", 3),
    (
        "{ raw = { type = \"f32\", header = [{ time = \"u64le ns\" }, { sequence = \"u32le\" }, { tag = \"u64le\" }] } }",
        1,
    ),
    ("{ raw = { type = \"i32\", channels = 2 } }", 2),
    ("{ json = { time = \"/t\", time_unit = \"us\", value = \"/v\" } }", 1),
    ("{ json = { value = [\"/x\", \"/y\"] } }", 2),
    ("{ json = { channels = 2 } }", 2),
    ("{ csv = { columns = [1, 3], time = 2, time_unit = \"s\" } }", 2),
    ("{ csv = { columns = [\"x\"], header = true } }", 1),
];

proptest! {
    #[test]
    fn noise_never_panics_and_never_gives_a_number_that_is_none(
        payload in proptest::collection::vec(any::<u8>(), 0..64), text in "[\\[\\]{}\",:0-9xyvt.e\n-]{0,48}",
    ) {
        for (config, channels) in CODECS {
            let mut decoder = decoder(config, channels);
            let mut out = Vec::new();
            for payload in [&payload[..], text.as_bytes()] {
                match decoder.decode(payload, &mut out) {
                    Ok(message) => {
                        prop_assert!(message.samples > 0 && out.len() == message.samples * channels);
                        prop_assert!(out.iter().all(|value| value.is_finite()));
                    }
                    Err(refusal) => prop_assert!(out.is_empty() && !refusal.to_string().is_empty()),
                }
            }
        }
        for config in ["{ raw = { type = \"u8\" } }", "{ json = {} }"] {
            let decoder = QuantizedDecoder::new(&codec(config), NumberType::U8, 4).unwrap();
            let mut out = Vec::new();
            let _ = decoder.decode(text.as_bytes(), &mut out);
            prop_assert!(matches!(out.len(), 0 | 4));
        }
    }

    #[test]
    fn a_damaged_picture_never_panics(at in 0usize..4096, byte: u8, cut in 0usize..4096) {
        let picture = ::image::RgbImage::from_fn(16, 16, |x, y| ::image::Rgb([x as u8 * 9, y as u8 * 9, 77]));
        for (format, file) in [(PictureFormat::Png, ::image::ImageFormat::Png), (PictureFormat::Jpeg, ::image::ImageFormat::Jpeg)] {
            let mut payload = Vec::new();
            picture.write_to(&mut std::io::Cursor::new(&mut payload), file).unwrap();
            let length = payload.len();
            payload[at % length] = byte;
            payload.truncate(cut % (2 * length));
            let _ = ImageDecoder::new(spec(format, (16, 16), 3)).unwrap().decode(&payload, &mut Vec::new());
        }
    }

    #[test]
    fn raw_i16_gives_back_what_was_sent(samples in proptest::collection::vec(any::<i16>(), 1..100)) {
        let payload: Vec<u8> = samples.iter().flat_map(|sample| sample.to_le_bytes()).collect();
        let expected: Vec<f32> = samples.iter().map(|sample| f32::from(*sample)).collect();
        prop_assert_eq!(good(&mut decoder(CODECS[0].0.replace(", channels = 3", "").as_str(), 1), payload).1, expected);
    }

    #[test]
    fn a_decimal_time_is_read_to_the_nanosecond(ns in 0i64..i64::MAX) {
        let text = format!("{}.{:09}", ns / 1_000_000_000, ns % 1_000_000_000);
        prop_assert_eq!(parse_time(&text, TimeUnit::S), Ok(ns));
    }
}
