use std::fs;
use std::io::Write;
use std::os::unix::fs::MetadataExt;

use super::*;

/// Volumes in a directory of their own, and a place to mount one. Only root can mount.
struct Bench {
    _root: tempfile::TempDir,
    volumes: Volumes,
    point: PathBuf,
}

impl Drop for Bench {
    fn drop(&mut self) {
        unmount(&self.point).ok();
    }
}

fn bench() -> Option<Bench> {
    if !nix::unistd::geteuid().is_root() {
        #[expect(clippy::disallowed_methods, reason = "a test is told that nothing may be skipped")]
        let required = std::env::var_os("TEST_REQUIRE").is_some();
        assert!(!required, "volumes can be tested by root only");
        println!("SKIPPED: volumes can be tested by root only");
        return None;
    }
    let root = tempfile::tempdir().unwrap();
    let directory = root.path().canonicalize().unwrap();
    let (images, point) = (directory.join("volumes"), directory.join("point"));
    fs::create_dir(&images).unwrap();
    fs::create_dir(&point).unwrap();
    let volumes = Volumes::new(VolumeTools::find().expect("mkfs.ext4 and mount are installed"), images);
    Some(Bench { _root: root, volumes, point })
}

/// Loop devices over images in the bench's directory.
fn devices(bench: &Bench) -> usize {
    let images = bench.volumes.images.clone();
    let backed = |entry: fs::DirEntry| fs::read_to_string(entry.path().join("loop/backing_file")).ok();
    let found = fs::read_dir("/sys/block").unwrap().filter_map(|entry| backed(entry.unwrap()));
    found.filter(|image| Path::new(image).starts_with(&images)).count()
}

/// The device goes as soon as nobody uses it: other programs on this machine may have copied its mount into a namespace
/// of their own meanwhile, and hold it as long as they live.
fn no_device_is_left(bench: &Bench) {
    for _ in 0..1200 {
        if devices(bench) == 0 {
            return;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    panic!("a loop device is left");
}

/// The least that a session may have.
const MOST_MIB: u32 = 64;
const SIZE: (u32, Kept) = (MOST_MIB, Kept::Lasting);

#[test]
fn a_volume_is_mounted_once_kept_when_it_is_unmounted_and_leaves_no_device() {
    let Some(bench) = bench() else { return };
    for _ in 0..2 {
        bench.volumes.mount("a", &bench.point, SIZE).unwrap();
    }
    assert!(is_mounted(&bench.point) && devices(&bench) == 1);
    assert_eq!(points_in(bench.point.parent().unwrap()).unwrap(), std::slice::from_ref(&bench.point));
    fs::write(bench.point.join("file"), "kept").unwrap();
    let found = mounted_at(&bench.point).unwrap().unwrap();
    for wanted in ["nosuid", "nodev", "noatime"] {
        assert!(found.options.split(',').any(|option| option == wanted), "{found:?}");
    }
    for _ in 0..2 {
        unmount(&bench.point).unwrap();
    }
    assert!(!is_mounted(&bench.point) && !bench.point.join("file").exists());
    no_device_is_left(&bench);
    bench.volumes.mount("a", &bench.point, SIZE).unwrap();
    assert_eq!(fs::read_to_string(bench.point.join("file")).unwrap(), "kept");
    unmount(&bench.point).unwrap();
    for _ in 0..2 {
        fs::write(bench.volumes.half_made("a"), "what a killed mkfs left").unwrap();
        bench.volumes.remove("a").unwrap();
        assert!(!bench.volumes.half_made("a").exists());
    }
    assert!(!bench.volumes.has("a"));
}

#[test]
fn what_is_in_memory_is_in_the_image_once_it_is_written_back() {
    let Some(bench) = bench() else { return };
    bench.volumes.mount("a", &bench.point, SIZE).unwrap();
    let mark = "written back before anybody waits for it ".repeat(200);
    fs::write(bench.point.join("file"), &mark).unwrap();
    let image = fs::read_dir(&bench.volumes.images).unwrap().next().unwrap().unwrap().path();
    let holds_it = || fs::read(&image).unwrap().windows(mark.len()).any(|part| part == mark.as_bytes());
    write_back(&bench.point);
    assert!(holds_it());
    // Where nothing is mounted there is nothing to be done.
    write_back(bench.point.parent().unwrap());
}

#[test]
fn a_full_volume_refuses_bytes_and_files_and_gives_back_what_is_deleted() {
    let Some(bench) = bench() else { return };
    bench.volumes.mount("a", &bench.point, SIZE).unwrap();
    let image = || bench.volumes.image("a").metadata().unwrap().blocks() * 512;
    let empty = image();
    let mut file = fs::File::create(bench.point.join("file")).unwrap();
    let piece = vec![7; 64 * 1024];
    let error = (0..4096).find_map(|_| file.write_all(&piece).err()).unwrap();
    assert_eq!(error.kind(), io::ErrorKind::StorageFull);
    file.sync_all().ok();
    let room = super::super::Room::look(&bench.point, &bench.point, super::super::Cap { mib: 1 }).unwrap();
    assert!(room.walled && room.full() == Some(super::super::Bound::Space), "{room:?}");
    let full = image();
    assert!(full <= u64::from(MOST_MIB) * MIB && full > empty + 40 * MIB, "{empty} {full}");
    drop(file);
    fs::remove_file(bench.point.join("file")).unwrap();
    // The file system gives it back in its own time.
    let given_back = (0..200).any(|_| {
        nix::unistd::sync();
        std::thread::sleep(Duration::from_millis(50));
        image() < full - 40 * MIB
    });
    assert!(given_back, "{full} {}", image());
    let most = u64::from(MOST_MIB) * MIB / BYTES_PER_FILE;
    let made =
        (0..2 * most).take_while(|number| fs::File::create(bench.point.join(number.to_string())).is_ok());
    let made = u64::try_from(made.count()).unwrap();
    assert!(made > most / 2 && made <= most + 64, "{made} of {most}");
    let room = super::super::Room::look(&bench.point, &bench.point, super::super::Cap { mib: 1 }).unwrap();
    assert_eq!(room.full(), Some(super::super::Bound::Files), "{room:?}");
}

#[test]
fn a_half_made_image_is_made_anew_and_something_else_in_the_place_is_refused() {
    let Some(bench) = bench() else { return };
    fs::write(bench.volumes.images.join("a.new"), "torn").unwrap();
    bench.volumes.mount("a", &bench.point, (2, Kept::Passing)).unwrap();
    let error = bench.volumes.mount("b", &bench.point, SIZE).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::AlreadyExists);
    unmount(&bench.point).unwrap();
    let flags = nix::mount::MsFlags::empty();
    nix::mount::mount(Some("tmpfs"), &bench.point, Some("tmpfs"), flags, None::<&str>).unwrap();
    let error = bench.volumes.mount("a", &bench.point, SIZE).unwrap_err();
    assert!(error.to_string().contains("tmpfs is mounted"), "{error}");
}

#[test]
fn a_volume_that_is_in_use_goes_when_its_user_does() {
    let Some(bench) = bench() else { return };
    bench.volumes.mount("a", &bench.point, SIZE).unwrap();
    let user = fs::File::create(bench.point.join("file")).unwrap();
    unmount(&bench.point).unwrap();
    assert!(!is_mounted(&bench.point) && devices(&bench) == 1);
    drop(user);
    no_device_is_left(&bench);
}

#[test]
fn a_damaged_image_says_what_is_wrong_and_probing_leaves_nothing() {
    let Some(bench) = bench() else { return };
    fs::write(bench.volumes.image("a"), vec![0; 1 << 20]).unwrap();
    let error = bench.volumes.mount("a", &bench.point, SIZE).unwrap_err().to_string();
    assert!(error.starts_with("mount failed: "), "{error}");
    fs::remove_file(bench.volumes.image("a")).unwrap();
    probe(&bench.volumes.tools, &bench.volumes.images).unwrap();
    assert_eq!(fs::read_dir(&bench.volumes.images).unwrap().count(), 0);
    no_device_is_left(&bench);
}
