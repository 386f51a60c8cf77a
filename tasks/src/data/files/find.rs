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
/// How the names of archives end, and of files that other tools than gzip compressed.
const ARCHIVES: [&str; 12] = [
    ".zip", ".7z", ".rar", ".tar", ".tgz", ".tar.gz", ".tar.bz2", ".tar.xz", ".tar.zst", ".bz2", ".xz",
    ".zst",
];

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

/// The name of an archive without its ending.
fn stem(name: &str) -> Option<String> {
    let name = name.to_lowercase();
    ARCHIVES.iter().find_map(|end| name.strip_suffix(end).map(str::to_string))
}

impl Place<'_> {
    /// The file of this name, plain before `.gz`, in any spelling: in the folder, or in a folder
    /// inside that is called like the data set, like the file, or as one of [`INNER`].
    pub(super) fn find(&self, name: &str) -> Result<Option<PathBuf>> {
        let files = self.files(name)?;
        let find = |wanted: &str| files.iter().find(|(n, _)| is_one_of(n, &[wanted]));
        Ok(find(name).or_else(|| find(&packed(name))).map(|(_, path)| path.clone()))
    }

    /// [`Self::find`], or an error that says what to do.
    pub(super) fn need(&self, name: &str) -> Result<PathBuf> {
        if let Some(path) = self.find(name)? {
            return Ok(path);
        }
        let archive = self.archive(name)?.map(|path| format!("; unpack {}", path.display()));
        let why = format!("not found, nor {}{}", packed(name), archive.unwrap_or_default());
        Err(Error::io(self.folder.join(name), io::Error::new(ErrorKind::NotFound, why)))
    }

    /// An archive of the file, or any in the folder, or one beside it under the data set's name.
    fn archive(&self, name: &str) -> Result<Option<PathBuf>> {
        let files = self.files(name)?;
        let beside = self.folder.parent().map_or(Ok(Vec::new()), entries)?;
        let called = |n: &str, names: &[&str]| stem(n).is_some_and(|s| is_one_of(&s, names));
        let own = files.iter().find(|(n, _)| called(n, &[name]));
        let found = own
            .or_else(|| files.iter().find(|(n, _)| stem(n).is_some()))
            .or_else(|| beside.iter().find(|(n, _)| called(n, self.names)));
        Ok(found.map(|(_, path)| path.clone()))
    }

    /// All files where the one of this name may be, the folder's own first.
    fn files(&self, name: &str) -> Result<Vec<(String, PathBuf)>> {
        let packed = packed(name);
        let names = [&[name, &packed], &INNER[..], self.names].concat();
        let mut files = Vec::new();
        walk(self.folder, &names, DEPTH, &mut files)?;
        Ok(files)
    }
}

fn packed(name: &str) -> String {
    format!("{name}.gz")
}

/// Appends the files of a folder, then those of the folders of these names inside.
fn walk(folder: &Path, names: &[&str], depth: usize, files: &mut Vec<(String, PathBuf)>) -> Result<()> {
    let (folders, here): (Vec<_>, Vec<_>) = entries(folder)?.into_iter().partition(|(_, path)| path.is_dir());
    files.extend(here.into_iter().filter(|(_, path)| path.is_file()));
    for (_, path) in folders.iter().filter(|(name, _)| depth > 0 && is_one_of(name, names)) {
        walk(path, names, depth - 1, files)?;
    }
    Ok(())
}
