//! Memory that was freed and not yet given back.
//!
//! glibc's allocator keeps what is freed inside an arena for the next allocation, and each thread that allocates has
//! an arena of its own. A model that was unloaded, or a plan that was optimized on a thread that now rests, would thus
//! go on counting as resident.

/// Gives freed memory back to the operating system, from the arenas of all threads. It takes the lock of
/// each for some tenths of a millisecond: for the moment after a model was unloaded, before memory is measured, and now and
/// then. Does nothing where the C library has no such call (musl gives back by itself).
pub fn give_back_memory() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    {
        unsafe extern "C" {
            // int malloc_trim(size_t pad), malloc.h
            fn malloc_trim(pad: usize) -> std::ffi::c_int;
        }
        // SAFETY: the declaration is that of glibc's malloc.h; the call may be made from any thread at any time.
        unsafe { malloc_trim(0) };
    }
}
