//! What a panic in one of several threads does.

/// Ends the process when its thread panics while it lives: a broker of which a part is gone must neither confirm
/// anything nor leave others waiting.
#[derive(Debug)]
pub struct AbortOnPanic;

impl Drop for AbortOnPanic {
    fn drop(&mut self) {
        if std::thread::panicking() {
            std::process::abort();
        }
    }
}
