//! Files that `caisson run` and `caisson input` send along: read and judged here, so that what the server would refuse is told before
//! anything is sent.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail, ensure};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use caisson_domain::attachment::{
    ATTACHMENT_BYTES, ATTACHMENTS, ATTACHMENTS_BYTES, IMAGE_SIDE_PX, Image, check_name,
};
use serde_json::{Value, json};

use crate::render::clean;

/// Reads the files; as the API wants them, and what people should know of them.
///
/// # Errors
/// One cannot be read, or the server would not take it.
pub(super) fn read(files: &[PathBuf]) -> anyhow::Result<(Vec<Value>, Vec<String>)> {
    ensure!(
        files.len() <= ATTACHMENTS,
        "{} files are to be attached, and at most {ATTACHMENTS} are taken; put some of them into one archive",
        files.len()
    );
    let (mut attachments, mut notes, mut together) = (Vec::new(), Vec::new(), 0);
    for file in files {
        let (name, content) = (name(file)?, content(file)?);
        together += content.len();
        let kind = match Image::read(&content) {
            Some(Image { size_px: Some((width, height)), .. }) if width.max(height) <= IMAGE_SIDE_PX => {
                "image"
            }
            Some(Image { size_px: Some((width, height)), .. }) => {
                notes.push(format!(
                    "{name} is an image of {width} by {height} pixels, and at most {IMAGE_SIDE_PX} a side are shown: it is sent as a file"
                ));
                "file"
            }
            Some(Image { size_px: None, .. }) => {
                notes.push(format!("{name} is a damaged image: it is sent as a file"));
                "file"
            }
            None => {
                if looks_like_an_image(file) {
                    notes.push(format!(
                        "{name} is no PNG, JPEG, GIF or WebP image by its bytes: it is sent as a file, and the agent is not shown it"
                    ));
                }
                "file"
            }
        };
        attachments.push(json!({ "name": name, "kind": kind, "content": STANDARD.encode(content) }));
    }
    ensure!(
        together <= ATTACHMENTS_BYTES,
        "the files to be attached have {together} bytes together, and at most {ATTACHMENTS_BYTES} are taken; leave some out, or \
         compress them"
    );
    Ok((attachments, notes))
}

/// An attachment as the API tells of it, on one line.
pub(super) fn line(attachment: &Value) -> String {
    let text = |name: &str| clean(attachment[name].as_str().unwrap_or_default());
    format!("{} ({}, {} bytes)", text("name"), text("kind"), attachment["size_bytes"])
}

fn name(file: &Path) -> anyhow::Result<String> {
    let name = file.file_name().and_then(|name| name.to_str());
    let name = name.with_context(|| format!("\"{}\" has no name that is UTF-8", file.display()))?;
    check_name(name).with_context(|| format!("\"{}\" cannot be attached under its name", file.display()))?;
    Ok(name.to_owned())
}

fn content(file: &Path) -> anyhow::Result<Vec<u8>> {
    let shown = file.display();
    let opened = File::open(file).with_context(|| format!("\"{shown}\" cannot be read"))?;
    let about = opened.metadata().with_context(|| format!("\"{shown}\" cannot be read"))?;
    if about.is_dir() {
        bail!("\"{shown}\" is a directory; attach files, or an archive of it");
    }
    let mut content = Vec::new();
    let most = u64::try_from(ATTACHMENT_BYTES).unwrap_or(u64::MAX);
    let read = opened.take(most.saturating_add(1)).read_to_end(&mut content);
    read.with_context(|| format!("\"{shown}\" cannot be read"))?;
    ensure!(
        content.len() <= ATTACHMENT_BYTES,
        "\"{shown}\" has {} bytes, and at most {ATTACHMENT_BYTES} are taken; compress it, or put it where the agent can fetch it",
        about.len()
    );
    Ok(content)
}

/// Whether somebody may think that it is shown to the agent.
fn looks_like_an_image(file: &Path) -> bool {
    let ending = file.extension().and_then(|ending| ending.to_str()).unwrap_or_default().to_ascii_lowercase();
    ["png", "jpg", "jpeg", "gif", "webp", "bmp", "tif", "tiff", "svg", "heic", "avif"]
        .contains(&ending.as_str())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(directory: &Path, name: &str, content: &[u8]) -> PathBuf {
        let path = directory.join(name);
        std::fs::write(&path, content).unwrap();
        path
    }

    fn png(side: u32) -> Vec<u8> {
        let head = b"\x89PNG\r\n\x1a\n\0\0\0\x0dIHDR".to_vec();
        [head, side.to_be_bytes().to_vec(), side.to_be_bytes().to_vec()].concat()
    }

    #[test]
    fn an_image_is_sent_as_such_by_its_bytes_and_all_else_as_a_file() {
        let directory = tempfile::tempdir().unwrap();
        let file = |name: &str, content: &[u8]| written(directory.path(), name, content);
        let files = [
            file("shot.dat", &png(3)),
            file("table.csv", b"a,b\n"),
            file("drawing.svg", b"<svg/>"),
            file("huge.png", &png(IMAGE_SIDE_PX + 1)),
            file("broken.png", &png(3)[..20]),
        ];
        let (attachments, notes) = read(&files).unwrap();
        let kinds: Vec<_> = attachments.iter().map(|it| it["kind"].as_str().unwrap()).collect();
        assert_eq!(kinds, ["image", "file", "file", "file", "file"]);
        assert_eq!(
            (&attachments[1]["name"], &attachments[1]["content"]),
            (&json!("table.csv"), &json!("YSxiCg=="))
        );
        assert_eq!(notes.len(), 3, "{notes:?}");
        assert!(notes[0].contains("drawing.svg is no PNG") && notes[0].contains("sent as a file"));
        assert!(notes[1].contains("huge.png") && notes[1].contains("8001 by 8001"));
        assert!(notes[2].contains("broken.png is a damaged image"));
    }

    #[test]
    fn an_attachment_is_told_on_one_line_without_what_moves_the_cursor() {
        let told = json!({"number": 0, "name": "a\u{1b}[2Jb", "kind": "image", "size_bytes": 12});
        assert_eq!(line(&told), format!("{} (image, 12 bytes)", clean("a\u{1b}[2Jb")));
        assert!(!line(&told).contains('\u{1b}'));
    }

    #[test]
    fn what_the_server_would_not_take_is_refused_with_a_remedy() {
        let directory = tempfile::tempdir().unwrap();
        let file = |name: &str, bytes: usize| written(directory.path(), name, &vec![b'x'; bytes]);
        let told = |files: &[PathBuf]| format!("{:#}", read(files).unwrap_err());
        let largest = file("largest", ATTACHMENT_BYTES);
        assert_eq!(read(std::slice::from_ref(&largest)).unwrap().0.len(), 1);
        assert!(
            told(&[file("larger", ATTACHMENT_BYTES + 1)]).contains("has 8388609 bytes, and at most 8388608")
        );
        let rest = file("rest", ATTACHMENTS_BYTES - ATTACHMENT_BYTES);
        assert_eq!(read(&[largest.clone(), rest.clone()]).unwrap().0.len(), 2);
        assert!(told(&[largest, rest, file("one", 1)]).contains("12582913 bytes together"));
        let one = file("one", 1);
        assert_eq!(read(&vec![one.clone(); ATTACHMENTS]).unwrap().0.len(), ATTACHMENTS);
        assert!(told(&vec![one; ATTACHMENTS + 1]).contains("at most 10 are taken"));
        assert!(told(&[directory.path().to_owned()]).contains("is a directory"));
        assert!(told(&[directory.path().join("none")]).contains("cannot be read"));
        assert!(told(&[file("a\u{202e}b", 1)]).contains("no plain file name"));
    }
}
