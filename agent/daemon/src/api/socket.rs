//! The socket file: who owns it, who may connect, and what becomes of one that was left behind.

use std::fs::Permissions;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt as _, FileTypeExt as _, MetadataExt as _, PermissionsExt as _};
use std::os::unix::net::UnixListener as StdListener;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{AtFlags, FlockOperation, Gid, Mode, OFlags};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use tokio::net::UnixListener;

/// Name of the socket in the run directory.
const NAME: &str = "limpet.sock";
/// The group whose members may connect.
const GROUP: &str = "limpet";
/// Connections that wait to be accepted.
const BACKLOG: i32 = 64;
/// How long a lock is waited for that another holds.
const A_MOMENT: Duration = Duration::from_millis(500);

/// Where the socket of a run directory is.
pub fn path(run: &Path) -> PathBuf {
    run.join(NAME)
}

/// A listening socket, which removes its file when it is dropped. There is at most one in a run directory.
#[derive(Debug)]
pub struct Socket {
    listener: UnixListener,
    path: PathBuf,
    /// The run directory, locked for as long as this process lives.
    run: OwnedFd,
}

/// Why there is no socket: one sentence for people.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// Another agent is at work.
    #[error(
        "another limpet runs with this run directory: {0} answers; stop that one, or give each its own gateway.run and gateway.id"
    )]
    Another(PathBuf),
    /// Something that the agent did not make and will not remove.
    #[error("{0} is no socket; remove it, or choose another gateway.run")]
    Foreign(PathBuf),
    /// The path does not fit in a socket's address.
    #[error("the path {0} is too long for a socket, which takes 107 bytes; choose a shorter gateway.run")]
    TooLong(PathBuf),
    /// The system refuses something.
    #[error("gateway.run: {} cannot be {done}: {error}; see that the agent may write there, or choose another folder", path.display())]
    System {
        /// The file or folder.
        path: PathBuf,
        /// What was to be done with it.
        done: &'static str,
        /// What the system says.
        error: io::Error,
    },
}

impl Socket {
    /// Listens at `limpet.sock` in the run directory, which is made if there is none. To be called inside the runtime
    /// that serves it.
    ///
    /// The file is for its owner and the group `limpet`. Where the agent may not give it to that group, this is logged
    /// and the socket serves the agent's own group.
    ///
    /// # Errors
    /// If another agent lives in the directory, or the system refuses.
    pub fn bind(run: &Path) -> Result<Self, BindError> {
        let path = path(run);
        let group = std::fs::read_to_string("/etc/group").ok().and_then(|groups| group_id(&groups, GROUP));
        let failed = |path: &Path, done| {
            let path = path.to_owned();
            move |error: io::Error| BindError::System { path, done, error }
        };
        if !run.exists() {
            std::fs::DirBuilder::new().recursive(true).mode(0o750).create(run).map_err(failed(run, "made"))?;
            share(run, 0o750, group).map_err(failed(run, "opened to its group"))?;
        }
        let folder = rustix::fs::open(run, OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
            .map_err(|error| failed(run, "opened")(error.into()))?;
        // Between two that start at once, what a file looks like decides nothing.
        match lock(&folder) {
            Ok(()) => {}
            Err(Errno::WOULDBLOCK) => return Err(BindError::Another(path)),
            Err(error) => return Err(failed(run, "locked")(error.into())),
        }
        let address = SocketAddrUnix::new(&path).map_err(|_| BindError::TooLong(path.clone()))?;
        let new_socket = || {
            let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
            rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)
                .map_err(|error| failed(&path, "made")(error.into()))
        };
        match std::fs::symlink_metadata(&path) {
            Ok(found) if !found.file_type().is_socket() => return Err(BindError::Foreign(path)),
            Ok(_) => match rustix::net::connect(new_socket()?, &address) {
                Err(Errno::CONNREFUSED) => {
                    tracing::info!(socket = %path.display(), "removing the socket of an agent that was killed");
                    std::fs::remove_file(&path).map_err(failed(&path, "removed"))?;
                }
                // Full is alive too.
                Ok(()) | Err(Errno::AGAIN) => return Err(BindError::Another(path)),
                Err(error) => return Err(failed(&path, "connected to")(error.into())),
            },
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(failed(&path, "looked at")(error)),
        }
        let socket = new_socket()?;
        rustix::net::bind(&socket, &address).map_err(|error| failed(&path, "made")(error.into()))?;
        // Before it listens: until then nobody can connect, whatever the umask let the file become.
        share(&path, 0o660, group).map_err(failed(&path, "opened to its group"))?;
        rustix::net::listen(&socket, BACKLOG).map_err(|error| failed(&path, "listened at")(error.into()))?;
        let listener = UnixListener::from_std(StdListener::from(socket)).map_err(failed(&path, "listened at"))?;
        Ok(Self { listener, path, run: folder })
    }

    /// The listener.
    pub fn listener(&self) -> &UnixListener {
        &self.listener
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

/// Locks a folder for this process, unless another holds it.
///
/// # Errors
/// `WOULDBLOCK` if it is held, even a moment later: a process that was just forked holds what its parent held until it
/// becomes another program, also where the parent has ended, or has become this one.
pub fn lock(folder: &OwnedFd) -> Result<(), Errno> {
    let until = Instant::now() + A_MOMENT;
    loop {
        match rustix::fs::flock(folder, FlockOperation::NonBlockingLockExclusive) {
            Err(Errno::WOULDBLOCK) if Instant::now() < until => std::thread::sleep(A_MOMENT / 20),
            locked => return locked,
        }
    }
}

/// Whether an agent lives in a run directory, even one that does not listen yet or any more.
pub fn is_held(run: &Path) -> bool {
    let Ok(folder) = rustix::fs::open(run, OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()) else {
        return false;
    };
    // Let go of when the folder is closed.
    rustix::fs::flock(&folder, FlockOperation::NonBlockingLockExclusive) == Err(Errno::WOULDBLOCK)
}

impl Drop for Socket {
    fn drop(&mut self) {
        // In the directory that was locked, even if somebody has put another in its place.
        if let Err(error) = rustix::fs::unlinkat(&self.run, NAME, AtFlags::empty()) {
            tracing::warn!(socket = %self.path.display(), %error, "the socket cannot be removed");
        }
    }
}

/// Gives a file this mode and, if there is one and it is another, this group.
fn share(path: &Path, mode: u32, group: Option<u32>) -> io::Result<()> {
    std::fs::set_permissions(path, Permissions::from_mode(mode))?;
    let Some(group) = group else { return Ok(()) };
    let own = std::fs::metadata(path)?.gid();
    if own != group
        && let Err(error) = rustix::fs::chown(path, None, Some(Gid::from_raw(group)))
    {
        tracing::warn!(
            path = %path.display(),
            %error,
            "cannot be given to group {GROUP}, so only this agent's user and group {own} can ask it; run the agent as a member of group {GROUP}: usermod -aG {GROUP} USER"
        );
    }
    Ok(())
}

/// Number of a group in the text of `/etc/group`.
fn group_id(groups: &str, name: &str) -> Option<u32> {
    groups.lines().find_map(|line| {
        let mut fields = line.split(':');
        (fields.next() == Some(name)).then(|| fields.nth(1)?.parse().ok())?
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mode(path: &Path) -> u32 {
        std::fs::metadata(path).unwrap().permissions().mode() & 0o7777
    }

    #[test]
    fn a_group_is_found_by_its_whole_name() {
        let groups = "root:x:0:\nlimpet-admin:x:7:\nlimpet:x:990:eve,adam\n";
        assert_eq!(group_id(groups, "limpet"), Some(990));
        assert_eq!(group_id(groups, "adam"), None);
        assert_eq!(group_id("limpet:x\nlimpet", "limpet"), None);
    }

    #[tokio::test]
    async fn the_socket_is_for_owner_and_group_and_goes_with_the_server() {
        let folder = tempfile::tempdir().unwrap();
        let run = folder.path().join("made/run");
        let socket = Socket::bind(&run).unwrap();
        assert_eq!(mode(&run), 0o750);
        assert_eq!(mode(socket.path()), 0o660);
        let path = path(&run);
        assert_eq!(socket.path(), path);
        drop(socket);
        assert!(!path.exists());
        Socket::bind(&run).expect("it can start again at once");
    }

    #[tokio::test]
    async fn a_socket_left_behind_is_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let path = path(folder.path());
        drop(StdListener::bind(&path).unwrap());
        assert!(path.exists(), "what an agent leaves that is killed");
        let socket = Socket::bind(folder.path()).unwrap();
        std::os::unix::net::UnixStream::connect(socket.path()).unwrap();
    }

    #[tokio::test]
    async fn a_live_socket_is_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let socket = Socket::bind(folder.path()).unwrap();
        let error = Socket::bind(folder.path()).unwrap_err().to_string();
        assert!(error.starts_with("another limpet runs with this run directory"), "{error}");
        std::os::unix::net::UnixStream::connect(socket.path()).expect("the first still listens");

        // One that knows no lock, and so busy that it accepts nobody.
        let folder = tempfile::tempdir().unwrap();
        let path = path(folder.path());
        let _other = StdListener::bind(&path).unwrap();
        let error = Socket::bind(folder.path()).unwrap_err();
        assert!(matches!(error, BindError::Another(_)), "{error}");
        assert!(path.exists());
    }

    #[tokio::test]
    async fn what_is_no_socket_is_not_removed() {
        let folder = tempfile::tempdir().unwrap();
        let path = path(folder.path());
        std::fs::write(&path, "precious").unwrap();
        assert!(matches!(Socket::bind(folder.path()).unwrap_err(), BindError::Foreign(_)));
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "precious");
    }

    #[tokio::test]
    async fn a_path_too_long_and_a_folder_that_cannot_be_made_say_so() {
        let folder = tempfile::tempdir().unwrap();
        let error = Socket::bind(&folder.path().join("x".repeat(100))).unwrap_err();
        assert!(matches!(error, BindError::TooLong(_)), "{error}");
        let file = folder.path().join("file");
        std::fs::write(&file, "").unwrap();
        let error = Socket::bind(&file.join("run")).unwrap_err().to_string();
        assert!(error.starts_with("gateway.run: ") && error.contains("cannot be made"), "{error}");
    }
}
