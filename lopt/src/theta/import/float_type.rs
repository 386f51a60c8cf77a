//! Floats of files: [`FloatType`].

/// How a file stores floats; little endian.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum FloatType {
    F64,
    F32,
    /// IEEE 754's binary16.
    F16,
    /// The upper half of an f32.
    Bf16,
}

/// What an error says was expected.
pub(super) const EXPECTED: &str = "F64, F32, F16 or BF16";

impl FloatType {
    /// Of the name that NumPy and JAX give it, e.g. `float32`.
    pub(super) fn named(name: &str) -> Option<Self> {
        Some(match name {
            "float64" => FloatType::F64,
            "float32" => FloatType::F32,
            "float16" => FloatType::F16,
            "bfloat16" => FloatType::Bf16,
            _ => return None,
        })
    }

    /// Bytes per number.
    pub(super) fn width(self) -> usize {
        match self {
            FloatType::F64 => 8,
            FloatType::F32 => 4,
            FloatType::F16 | FloatType::Bf16 => 2,
        }
    }

    /// The numbers, rounded to f32. Bytes past the last whole number are left out.
    pub(super) fn numbers(self, bytes: &[u8]) -> Vec<f32> {
        fn each<const N: usize>(bytes: &[u8], number: fn([u8; N]) -> f32) -> Vec<f32> {
            bytes.chunks_exact(N).filter_map(|c| c.try_into().ok().map(number)).collect()
        }
        match self {
            FloatType::F64 => each(bytes, |b| f64::from_le_bytes(b) as f32),
            FloatType::F32 => each(bytes, f32::from_le_bytes),
            FloatType::F16 => each(bytes, |b| half(u16::from_le_bytes(b))),
            FloatType::Bf16 => each(bytes, |[low, high]| f32::from_le_bytes([0, 0, low, high])),
        }
    }
}

/// The number that IEEE 754's binary16 stores as `bits`: sign, 5 bits of exponent, 10 of fraction.
fn half(bits: u16) -> f32 {
    let sign = if bits >> 15 == 0 { 1.0 } else { -1.0 };
    let (exponent, fraction) = (i32::from(bits >> 10 & 31), f32::from(bits & 1023));
    sign * match exponent {
        0 => fraction * 2f32.powi(-24),
        31 if fraction == 0.0 => f32::INFINITY,
        31 => f32::NAN,
        _ => (1024.0 + fraction) * 2f32.powi(exponent - 25),
    }
}
