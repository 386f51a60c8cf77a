//! Where a data set's files are: every library, archive and unpacker has its own folders and
//! spellings.

use outerloop_core::{Error, Result};
use std::fs;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

/// Folders that hold files inside a data set's folder: torchvision's, EMNIST's archive's,
/// Fashion-MNIST's repository's.
const INNER: [&str; 3] = ["raw", "gzip", "data"];
/// Folders in folders that are looked into; a link to a folder above must not be followed for ever.
const DEPTH: usize = 4;
/// How the names of archives end.
const ARCHIVES: [&str; 9] =
    [".zip", ".tar", ".tgz", ".tar.gz", ".tar.bz2", ".tar.xz", ".tar.zst", ".7z", ".rar"];

/// A data set's folder.
#[derive(Clone, Copy)]
pub(super) struct Place<'a> {
    pub(super) folder: &'a Path,
    /// What folders of this data set are called, here and inside.
    pub(super) names: &'a [&'a str],
}

/// What all spellings of a name share: letters and digits, in lower case.
fn plain(name: &str) -> String {
    name.chars().filter(char::is_ascii_alphanumeric).map(|c| c.to_ascii_lowercase()).collect()
}

/// The entries of a folder by name, sorted; none if there is no folder. Hidden ones do not count:
/// unpackers leave `._name` beside `name`.
pub(super) fn entries(folder: &Path) -> Result<Vec<(String, PathBuf)>> {
    let all = match fs::read_dir(folder) {
        Ok(all) => all.collect::<io::Result<Vec<_>>>(),
        Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => Ok(Vec::new()),
        Err(e) => Err(e),
    };
    let all = all.map_err(|e| Error::io(folder, e))?.into_iter();
    let named = all.map(|e| (e.file_name().to_string_lossy().into_owned(), e.path()));
    let mut entries: Vec<_> = named.filter(|(name, _)| !name.starts_with('.')).collect();
    entries.sort();
    Ok(entries)
}

/// Whether a name is one of `names`, in any spelling.
pub(super) fn is_one_of(name: &str, names: &[&str]) -> bool {
    names.iter().any(|n| plain(n) == plain(name))
}

/// The folders in `root` that have one of the names.
pub(super) fn folders(root: &Path, names: &[&str]) -> Result<Vec<PathBuf>> {
    let named = entries(root)?.into_iter().filter(|(name, path)| is_one_of(name, names) && path.is_dir());
    Ok(named.map(|(_, path)| path).collect())
}

impl Place<'_> {
    /// The file of this name, plain before `.gz`, in any spelling: in the folder, or in a folder
    /// inside that is called like the data set, like the file, or as one of [`INNER`].
    pub(super) fn find(&self, name: &str) -> Result<Option<PathBuf>> {
        self.search(self.folder, &[name, &format!("{name}.gz")], DEPTH)
    }

    fn search(&self, folder: &Path, names: &[&str; 2], depth: usize) -> Result<Option<PathBuf>> {
        let entries = entries(folder)?;
        for wanted in names {
            let mut files = entries.iter().filter(|(n, path)| is_one_of(n, &[*wanted]) && path.is_file());
            if let Some((_, path)) = files.next() {
                return Ok(Some(path.clone()));
            }
        }
        let inner = |n: &str| is_one_of(n, names) || is_one_of(n, &INNER) || is_one_of(n, self.names);
        for (_, path) in entries.iter().filter(|(n, path)| depth > 0 && inner(n) && path.is_dir()) {
            if let Some(path) = self.search(path, names, depth - 1)? {
                return Ok(Some(path));
            }
        }
        Ok(None)
    }

    /// [`Self::find`], or an error that says what to do.
    pub(super) fn need(&self, name: &str) -> Result<PathBuf> {
        if let Some(path) = self.find(name)? {
            return Ok(path);
        }
        let archive = self.archive()?.map(|path| format!("; unpack {}", path.display()));
        let why = format!("not found, nor {name}.gz{}", archive.unwrap_or_default());
        Err(Error::io(self.folder.join(name), io::Error::new(ErrorKind::NotFound, why)))
    }

    /// An archive in the folder, or beside it under the data set's name.
    fn archive(&self) -> Result<Option<PathBuf>> {
        let stem = |name: &str| {
            let name = name.to_lowercase();
            ARCHIVES.iter().find_map(|end| name.strip_suffix(end).map(str::to_string))
        };
        let inside = entries(self.folder)?.into_iter().find(|(name, _)| stem(name).is_some());
        let beside = match (inside, self.folder.parent()) {
            (None, Some(parent)) => {
                let named = |name: &str| stem(name).is_some_and(|s| is_one_of(&s, self.names));
                entries(parent)?.into_iter().find(|(name, _)| named(name))
            }
            (inside, _) => inside,
        };
        Ok(beside.map(|(_, path)| path))
    }
}
