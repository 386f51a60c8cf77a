//! Files that are whole or not there: write beside, flush to disk, rename.

use crate::{Error, Result};
use std::{
    fs, io,
    io::Write,
    path::{Path, PathBuf},
};

const PREFIX: &str = ".outerloop-";
const SUFFIX: &str = ".tmp";

/// The directory that holds `path`; `.` for a bare file name.
fn parent(path: &Path) -> &Path {
    path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Writes a file so that a reader, a crash or a power cut sees the old content or the new, never a
/// mixture.
///
/// The bytes go to a temporary file in the same directory, are flushed to disk and renamed over
/// `path`; then the directory is flushed. On Unix the mode is 0666 less the umask. A process killed
/// in between leaves the temporary file: see [`sweep_temp`].
pub fn write_atomic(path: impl AsRef<Path>, bytes: &[u8]) -> Result<()> {
    write_atomic_with(path, |file| file.write_all(bytes))
}

/// [`write_atomic`] of what `write` puts into the temporary file, for content that should not lie in memory as a whole.
/// If it fails, nothing has changed.
pub fn write_atomic_with(
    path: impl AsRef<Path>,
    write: impl FnOnce(&mut fs::File) -> io::Result<()>,
) -> Result<()> {
    let path = path.as_ref();
    persist(path, write).map_err(|e| Error::io(path, e))
}

fn persist(path: &Path, write: impl FnOnce(&mut fs::File) -> io::Result<()>) -> io::Result<()> {
    let dir = parent(path);
    let mut builder = tempfile::Builder::new();
    builder.prefix(PREFIX).suffix(SUFFIX);
    #[cfg(unix)]
    builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
    let mut temp = builder.tempfile_in(dir)?;
    write(temp.as_file_mut())?;
    temp.as_file().sync_all()?;
    temp.persist(path).map_err(|e| e.error)?;
    // Without this the rename itself may be lost in a power cut.
    #[cfg(unix)]
    fs::File::open(dir)?.sync_all()?;
    Ok(())
}

/// Whether a file of this name is one that a killed [`write_atomic`] left.
pub fn is_temp(name: &str) -> bool {
    name.starts_with(PREFIX) && name.ends_with(SUFFIX)
}

/// Removes the temporary files that killed processes left in `dir`, and returns their paths.
///
/// Call it once at the start of a run that owns the directory: a file that another live process is
/// writing there would be removed too.
pub fn sweep_temp(dir: impl AsRef<Path>) -> Result<Vec<PathBuf>> {
    let dir = dir.as_ref();
    let at = |e| Error::io(dir, e);
    let mut removed = Vec::new();
    for entry in fs::read_dir(dir).map_err(at)? {
        let entry = entry.map_err(at)?;
        let name = entry.file_name();
        let ours = name.to_str().is_some_and(is_temp);
        if ours && entry.file_type().map_err(at)?.is_file() {
            let path = entry.path();
            fs::remove_file(&path).map_err(|e| Error::io(&path, e))?;
            removed.push(path);
        }
    }
    removed.sort();
    Ok(removed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replaces_the_file_and_leaves_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a");
        write_atomic(&path, b"old").unwrap();
        write_atomic(&path, b"new").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"new");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn content_that_cannot_be_made_leaves_the_old_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a");
        write_atomic(&path, b"old").unwrap();
        let fail = write_atomic_with(&path, |file| {
            file.write_all(b"half")?;
            Err(io::Error::other("no more"))
        });
        assert!(fail.unwrap_err().to_string().contains("no more"));
        assert_eq!(fs::read(&path).unwrap(), b"old");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[cfg(unix)]
    #[test]
    fn has_the_mode_of_an_ordinary_file() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let (a, b) = (dir.path().join("a"), dir.path().join("b"));
        write_atomic(&a, b"x").unwrap();
        fs::write(&b, b"x").unwrap();
        let mode = |p| fs::metadata(p).unwrap().permissions().mode();
        assert_eq!(mode(a), mode(b));
    }

    #[test]
    fn a_failed_write_names_the_path_and_keeps_the_directory_clean() {
        let dir = tempfile::tempdir().unwrap();
        let taken = dir.path().join("taken");
        fs::create_dir(&taken).unwrap();
        let message = write_atomic(&taken, b"x").unwrap_err().to_string();
        assert!(message.contains("taken"), "{message}");
        assert!(write_atomic(dir.path().join("none/a"), b"x").is_err());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn sweep_removes_only_our_temporary_files() {
        let dir = tempfile::tempdir().unwrap();
        let left = dir.path().join(format!("{PREFIX}abc{SUFFIX}"));
        for path in [&left, &dir.path().join("a.tmp"), &dir.path().join(".outerloop-notes")] {
            fs::write(path, b"x").unwrap();
        }
        assert_eq!(sweep_temp(dir.path()).unwrap(), [left]);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2);
    }
}
