//! AMQP 0-9-1: frames, methods, content headers and field tables, read and written as the specification's
//! numbers say. Borrows from the input, keeps properties as the octets that came, and knows nothing of
//! queues, exchanges or who is connected.
//!
//! ```text
//! frame   = type:u8 channel:u16 size:u32 payload:size*octet 0xCE     (every number is big-endian)
//! method  = class:u16 method:u16 arguments
//! header  = class:u16 0:u16 body-size:u64 flags:u16 properties
//! ```

pub mod content;
pub mod encode;
pub mod forward;
pub mod frame;
pub mod method;
pub mod table;
pub mod wire;

/// What a client of this protocol sends first: the name, and the version that is spoken here.
pub const PREAMBLE: &[u8; 8] = b"AMQP\0\0\x09\x01";

/// Codes of replies and exceptions, as the specification numbers them.
pub mod code {
    /// Nothing is wrong.
    pub const SUCCESS: u16 = 200;
    /// The body is larger than the broker takes.
    pub const CONTENT_TOO_LARGE: u16 = 311;
    /// A mandatory message could not be routed.
    pub const NO_ROUTE: u16 = 312;
    /// A message that wanted a consumer at once found none.
    pub const NO_CONSUMERS: u16 = 313;
    /// An operator, or the end of the broker, closes the connection.
    pub const CONNECTION_FORCED: u16 = 320;
    /// The virtual host is not there.
    pub const INVALID_PATH: u16 = 402;
    /// The client may not do that.
    pub const ACCESS_REFUSED: u16 = 403;
    /// What was named is not there.
    pub const NOT_FOUND: u16 = 404;
    /// Another connection has it for itself.
    pub const RESOURCE_LOCKED: u16 = 405;
    /// It is not as the client says.
    pub const PRECONDITION_FAILED: u16 = 406;
    /// A frame that is none.
    pub const FRAME_ERROR: u16 = 501;
    /// A frame whose content makes no sense.
    pub const SYNTAX_ERROR: u16 = 502;
    /// A method at a time when it means nothing.
    pub const COMMAND_INVALID: u16 = 503;
    /// A channel that is not open, or is open already.
    pub const CHANNEL_ERROR: u16 = 504;
    /// A frame that was not expected.
    pub const UNEXPECTED_FRAME: u16 = 505;
    /// The broker has no room left for it.
    pub const RESOURCE_ERROR: u16 = 506;
    /// What was asked for is not allowed.
    pub const NOT_ALLOWED: u16 = 530;
    /// What was asked for is not offered.
    pub const NOT_IMPLEMENTED: u16 = 540;
    /// The broker failed.
    pub const INTERNAL_ERROR: u16 = 541;

    /// The specification's name of a code.
    pub fn name(code: u16) -> &'static str {
        match code {
            SUCCESS => "OK",
            CONTENT_TOO_LARGE => "CONTENT_TOO_LARGE",
            NO_ROUTE => "NO_ROUTE",
            NO_CONSUMERS => "NO_CONSUMERS",
            CONNECTION_FORCED => "CONNECTION_FORCED",
            INVALID_PATH => "INVALID_PATH",
            ACCESS_REFUSED => "ACCESS_REFUSED",
            NOT_FOUND => "NOT_FOUND",
            RESOURCE_LOCKED => "RESOURCE_LOCKED",
            PRECONDITION_FAILED => "PRECONDITION_FAILED",
            FRAME_ERROR => "FRAME_ERROR",
            SYNTAX_ERROR => "SYNTAX_ERROR",
            COMMAND_INVALID => "COMMAND_INVALID",
            CHANNEL_ERROR => "CHANNEL_ERROR",
            UNEXPECTED_FRAME => "UNEXPECTED_FRAME",
            RESOURCE_ERROR => "RESOURCE_ERROR",
            NOT_ALLOWED => "NOT_ALLOWED",
            NOT_IMPLEMENTED => "NOT_IMPLEMENTED",
            _ => "INTERNAL_ERROR",
        }
    }
}
