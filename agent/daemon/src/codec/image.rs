//! Pictures: decoded, brought to the graph's size, and normalized into `f32` features.
//!
//! In order: decode, gray or color as the graph wants it, resize (bilinear, both sides independently), crop from the
//! middle, then `(pixel − mean) ÷ std` per channel with pixels from 0 to 255, in the graph's order and layout.
//! A picture is a stranger's data: its size and the memory that decoding may take are limited before anything is
//! allocated.

use std::io::Cursor;

use image::imageops::{self, FilterType};
use image::{DynamicImage, GrayImage, ImageBuffer, ImageFormat, ImageReader, Limits, Pixel, RgbImage};

use super::{Message, Refusal};

/// Largest width and height that is decoded.
const SIDE_MAX: u32 = 8192;
/// Most memory that a decoder may use, in bytes.
const MEMORY_MAX: u64 = 64 << 20;

/// How a picture travels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PictureFormat {
    /// JPEG file.
    Jpeg,
    /// PNG file.
    Png,
    /// Three bytes a pixel, rows from the top, of the size in [`ImageSpec::raw_size`].
    Rgb8,
    /// One byte a pixel, likewise.
    Gray8,
}

/// Order of the color channels in the graph.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ColorOrder {
    /// Red first.
    Rgb,
    /// Blue first.
    Bgr,
}

/// Order of the axes in the graph.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Layout {
    /// Row, column, channel.
    Nhwc,
    /// Channel, row, column.
    Nchw,
}

/// What a model's manifest and graph say about its pictures. Sizes are (width, height).
#[derive(Debug, Clone, PartialEq)]
pub struct ImageSpec {
    /// How pictures arrive.
    pub format: PictureFormat,
    /// Size of the pictures that arrive, for the formats that do not carry it.
    pub raw_size: Option<(u32, u32)>,
    /// Size of the graph's input.
    pub size: (u32, u32),
    /// Channels of the graph's input: 1 (gray) or 3 (color).
    pub channels: usize,
    /// Size to scale to.
    pub resize: Option<(u32, u32)>,
    /// Size to cut from the middle.
    pub crop: Option<(u32, u32)>,
    /// Order of color channels.
    pub order: ColorOrder,
    /// Order of axes.
    pub layout: Layout,
    /// Subtracted from each pixel; one per channel, or empty for 0.
    pub mean: Vec<f32>,
    /// Each pixel is divided by this; one per channel, or empty for 1.
    pub std: Vec<f32>,
}

/// Decodes the pictures of one source for one model.
#[derive(Debug, Clone)]
pub struct ImageDecoder {
    spec: ImageSpec,
}

impl ImageDecoder {
    /// Checks what a manifest asks for.
    ///
    /// # Errors
    /// One sentence, if its parts do not fit each other.
    pub fn new(spec: ImageSpec) -> Result<Self, String> {
        let within = |(width, height): (u32, u32)| (1..=SIDE_MAX).contains(&width) && (1..=SIDE_MAX).contains(&height);
        let sizes = [Some(spec.size), spec.raw_size, spec.resize, spec.crop];
        if let Some((width, height)) = sizes.into_iter().flatten().find(|size| !within(*size)) {
            return Err(format!("a picture of {width} x {height} is out of bounds; expected 1 to {SIDE_MAX} each way"));
        }
        if !matches!(spec.channels, 1 | 3) {
            return Err(format!("the model takes {} channels, expected 1 (gray) or 3 (color)", spec.channels));
        }
        for (key, list) in [("mean", &spec.mean), ("std", &spec.std)] {
            if !(list.is_empty() || list.len() == spec.channels) || list.iter().any(|value| !value.is_finite()) {
                return Err(format!(
                    "'{key}' has {} values, expected {} finite ones, one per channel",
                    list.len(),
                    spec.channels
                ));
            }
        }
        if spec.std.contains(&0.0) {
            return Err("'std' holds a 0, and pixels are divided by it".into());
        }
        if matches!(spec.format, PictureFormat::Rgb8 | PictureFormat::Gray8) && spec.raw_size.is_none() {
            return Err("a raw picture does not carry its size; the manifest must give it".into());
        }
        if let (Some(crop), Some(before)) = (spec.crop, spec.resize.or(spec.raw_size))
            && (crop.0 > before.0 || crop.1 > before.1)
        {
            return Err(format!(
                "'crop' to {} x {} is larger than the picture of {} x {}",
                crop.0, crop.1, before.0, before.1
            ));
        }
        if let Some(last) = spec.crop.or(spec.resize).filter(|last| *last != spec.size) {
            let (width, height) = spec.size;
            return Err(format!(
                "pictures are brought to {} x {} and the model takes {width} x {height}",
                last.0, last.1
            ));
        }
        Ok(Self { spec })
    }

    /// How many features a picture gives.
    #[cfg(test)]
    pub fn values(&self) -> usize {
        self.spec.size.0 as usize * self.spec.size.1 as usize * self.spec.channels
    }

    /// Decodes one picture. `out` is cleared and gets the features; after a refusal it is empty.
    ///
    /// # Errors
    /// [`Refusal::BadImage`], or [`Refusal::WindowLength`] for a raw picture.
    pub fn decode(&self, payload: &[u8], out: &mut Vec<f32>) -> Result<Message, Refusal> {
        out.clear();
        let picture = self.picture(payload)?;
        if self.spec.channels == 1 {
            self.features(&self.fit(picture.into_luma8())?, out);
        } else {
            self.features(&self.fit(picture.into_rgb8())?, out);
        }
        Ok(Message { samples: 1, ..Message::default() })
    }

    fn picture(&self, payload: &[u8]) -> Result<DynamicImage, Refusal> {
        let file = |format| {
            let mut reader = ImageReader::with_format(Cursor::new(payload), format);
            let mut limits = Limits::no_limits();
            limits.max_image_width = Some(SIDE_MAX);
            limits.max_image_height = Some(SIDE_MAX);
            limits.max_alloc = Some(MEMORY_MAX);
            reader.limits(limits);
            reader.decode().map_err(|error| Refusal::BadImage(error.to_string()))
        };
        let (width, height) = self.spec.raw_size.unwrap_or(self.spec.size);
        let raw = |channels: usize| {
            let expected = width as usize * height as usize * channels;
            if payload.len() == expected {
                Ok(payload.to_vec())
            } else {
                Err(Refusal::WindowLength { found: payload.len(), expected })
            }
        };
        let checked = "the length has been compared with the size";
        match self.spec.format {
            PictureFormat::Jpeg => file(ImageFormat::Jpeg),
            PictureFormat::Png => file(ImageFormat::Png),
            PictureFormat::Rgb8 => Ok(RgbImage::from_raw(width, height, raw(3)?).expect(checked).into()),
            PictureFormat::Gray8 => Ok(GrayImage::from_raw(width, height, raw(1)?).expect(checked).into()),
        }
    }

    /// Brings a picture, gray or color, to the graph's size.
    fn fit<P: Pixel<Subpixel = u8> + 'static>(&self, picture: ImageBuffer<P, Vec<u8>>) -> Result<Vec<u8>, Refusal> {
        let picture = match self.spec.resize {
            Some((width, height)) if picture.dimensions() != (width, height) => {
                imageops::resize(&picture, width, height, FilterType::Triangle)
            }
            _ => picture,
        };
        let (x, y, width, height) = self.middle(picture.dimensions())?;
        Ok(imageops::crop_imm(&picture, x, y, width, height).to_image().into_raw())
    }

    /// The part of a picture that the graph takes: x, y, width, height.
    fn middle(&self, found: (u32, u32)) -> Result<(u32, u32, u32, u32), Refusal> {
        let (width, height) = self.spec.size;
        let fits = match self.spec.crop {
            Some(_) => found.0 >= width && found.1 >= height,
            None => found == self.spec.size,
        };
        if !fits {
            let need = if self.spec.crop.is_some() { "at least " } else { "" };
            let problem = format!("it is {} x {}, expected {need}{width} x {height}", found.0, found.1);
            return Err(Refusal::BadImage(problem));
        }
        Ok(((found.0 - width) / 2, (found.1 - height) / 2, width, height))
    }

    /// Normalizes pixels, channels interleaved, into the graph's order and layout.
    fn features(&self, pixels: &[u8], out: &mut Vec<f32>) {
        let channels = self.spec.channels;
        let constant = |list: &[f32], channel: usize, default: f32| list.get(channel).copied().unwrap_or(default);
        // Mean and std are in the graph's order of channels, as its author knows them.
        let value = |pixel: &[u8], channel: usize| {
            let stored = if self.spec.order == ColorOrder::Bgr { channels - 1 - channel } else { channel };
            let (mean, std) = (constant(&self.spec.mean, channel, 0.0), constant(&self.spec.std, channel, 1.0));
            (f32::from(pixel[stored]) - mean) / std
        };
        match self.spec.layout {
            Layout::Nhwc => {
                out.extend(
                    pixels
                        .chunks_exact(channels)
                        .flat_map(|pixel| (0..channels).map(move |c| (pixel, c)))
                        .map(|(pixel, c)| value(pixel, c)),
                );
            }
            Layout::Nchw => {
                for channel in 0..channels {
                    out.extend(pixels.chunks_exact(channels).map(|pixel| value(pixel, channel)));
                }
            }
        }
    }
}
