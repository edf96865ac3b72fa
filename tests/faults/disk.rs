//! A file system of one's own: a file, a loop device, ext4. It can fill up, and
//! its power can be cut.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use tempfile::TempDir;

/// What these tests need, for whoever runs them where something is missing.
const NEEDS: &str = "these tests need root, loop devices, and the Debian packages e2fsprogs, mount and xfsprogs";

/// A mounted file system. Unmounted and detached when it is dropped, however a
/// test ends.
pub struct Disk {
    /// Empty if it was never attached.
    device: String,
    is_mounted: bool,
    place: TempDir,
}

impl Disk {
    /// A new one, of so many MiB.
    pub fn new(mib: u64) -> Self {
        let place = TempDir::new().unwrap();
        let mut disk = Self { device: String::new(), is_mounted: false, place };
        let image = disk.place.path().join("image");
        std::fs::File::create(&image).unwrap().set_len(mib << 20).unwrap();
        std::fs::create_dir(disk.path()).unwrap();
        run("mkfs.ext4", &["-q", "-F", text(&image)]);
        // Once: another device on the same file would be another cache.
        disk.device = run("losetup", &["-f", "--show", text(&image)]).trim().to_owned();
        disk.mount();
        disk
    }

    /// Where it is mounted.
    pub fn path(&self) -> PathBuf {
        self.place.path().join("mount")
    }

    /// From here on nothing reaches the device, and whoever writes is told so.
    /// What was not synced is lost.
    pub fn cut_power(&self) {
        run("xfs_io", &["-x", "-c", "shutdown", text(&self.path())]);
    }

    /// After a power cut. Nobody may have a file of it open any more.
    pub fn restore_power(&mut self) {
        run("umount", &[text(&self.path())]);
        self.is_mounted = false;
        self.mount();
    }

    /// Takes all the room that is left; the file that holds it.
    pub fn fill(&self) -> PathBuf {
        let filler = self.path().join("filler");
        let mut file = std::fs::File::create(&filler).unwrap();
        for size in [1 << 20, 4096] {
            while std::io::Write::write_all(&mut file, &vec![1; size]).is_ok() {}
        }
        filler
    }

    fn mount(&mut self) {
        run("mount", &["-t", "ext4", &self.device, text(&self.path())]);
        self.is_mounted = true;
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // A test that failed may have left a writer behind: then the mount goes
        // when that ends.
        if self.is_mounted && !is_done("umount", &[text(&self.path())]) {
            is_done("umount", &["--lazy", text(&self.path())]);
        }
        if !self.device.is_empty() {
            is_done("losetup", &["-d", &self.device]);
        }
    }
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn is_done(program: &str, arguments: &[&str]) -> bool {
    Command::new(program).args(arguments).status().is_ok_and(|status| status.success())
}

fn run(program: &str, arguments: &[&str]) -> String {
    match Command::new(program).args(arguments).output() {
        Ok(output) if output.status.success() => String::from_utf8(output.stdout).unwrap(),
        Ok(output) => {
            panic!("{program} {arguments:?} failed ({}): {NEEDS}", String::from_utf8_lossy(&output.stderr).trim())
        }
        Err(error) => panic!("{program} cannot be run ({error}): {NEEDS}"),
    }
}
