//! HTTP/1.1 as far as a broker needs it: [`decode`] turns bytes into requests, [`encode`] writes heads,
//! [`json`] writes values. Nothing here knows what a route means.

pub mod decode;
pub mod encode;
pub mod json;
pub mod target;

/// Longest head of a request, bytes: its request line and all its fields.
pub const HEAD_BYTES_MAX: usize = 16 << 10;

/// Most fields in the head of a request.
pub const FIELDS_MAX: usize = 64;

/// Longest line with a chunk's size, bytes, and longest trailer.
pub const CHUNK_LINE_BYTES_MAX: usize = 1 << 10;
