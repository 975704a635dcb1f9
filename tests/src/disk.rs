//! A small disk of its own for what must meet a full one.

use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

use crate::agent::Home;
use crate::program::text_of;

/// A tmpfs of a few megabytes; it goes with this value.
pub struct SmallDisk {
    folder: TempDir,
}

impl SmallDisk {
    /// A new one of so many KiB, if this user may mount; a line says so if not.
    pub fn mount(kib: usize) -> Option<Self> {
        let folder = tempfile::tempdir().expect("a temporary folder can be made");
        let size = format!("size={kib}k,mode=700");
        let made = Command::new("mount").args(["-t", "tmpfs", "-o", &size, "none", text_of(folder.path())]).output();
        match made {
            Ok(output) if output.status.success() => Some(Self { folder }),
            Ok(output) => {
                eprintln!("skipped: no small disk: {}", String::from_utf8_lossy(&output.stderr).trim());
                None
            }
            Err(error) => {
                eprintln!("skipped: no small disk: mount: {error}");
                None
            }
        }
    }

    /// A home whose state folder is this disk.
    ///
    /// # Panics
    /// If it cannot be linked there.
    pub fn home(&self) -> Home {
        let home = Home::empty();
        std::os::unix::fs::symlink(self.folder.path(), home.state()).expect("a home is empty at first");
        home
    }

    /// Bytes that are free on it.
    ///
    /// # Panics
    /// If it does not tell.
    pub fn free(&self) -> u64 {
        let stat = rustix::fs::statvfs(self.folder.path()).expect("it is mounted");
        stat.f_bavail * stat.f_frsize
    }

    /// A file that takes space until it is removed.
    ///
    /// # Panics
    /// If there is not so much space.
    pub fn ballast(&self, bytes: u64) -> PathBuf {
        let path = self.folder.path().join("ballast");
        let len = usize::try_from(bytes).expect("the disk is small");
        std::fs::write(&path, vec![0; len]).expect("there is as much space");
        path
    }

    /// Takes every block that is left, and keeps it until the file is removed.
    ///
    /// # Panics
    /// If the file cannot be made.
    pub fn fill(&self) -> PathBuf {
        use std::io::Write as _;
        let path = self.folder.path().join("filling");
        let mut file = std::fs::File::create(&path).expect("a file needs no block");
        // It ends when nothing is left.
        while file.write_all(&[0; 4096]).is_ok() {}
        path
    }

    /// Where it is mounted.
    pub fn path(&self) -> &Path {
        self.folder.path()
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Who still has files open there keeps it until they are closed.
        let _ = Command::new("umount").args(["-l", text_of(self.folder.path())]).status();
    }
}
