use proptest::prelude::*;

use super::*;

fn of(media_type: &'static str, size_px: Option<(u32, u32)>) -> Image {
    Image { media_type, size_px }
}

fn png_head(width: u32, height: u32) -> Vec<u8> {
    let mut bytes = b"\x89PNG\r\n\x1a\n\0\0\0\x0dIHDR".to_vec();
    bytes.extend(width.to_be_bytes());
    bytes.extend(height.to_be_bytes());
    bytes
}

#[test]
fn a_name_is_that_of_a_file_and_of_no_path() {
    for good in [
        "a",
        "report.csv",
        ".eslintrc",
        "bericht über 3 fälle.pdf",
        "-rf",
        "CLAUDE.md",
        "...",
        "\u{2764}\u{fe0f}.png",
    ] {
        assert_eq!(check_name(good), Ok(()), "{good}");
    }
    assert_eq!(check_name(&"x".repeat(ATTACHMENT_NAME_BYTES)), Ok(()));
    let long = "x".repeat(ATTACHMENT_NAME_BYTES + 1);
    let bad =
        ["", ".", "..", "a/b", "/etc/passwd", "..\\x", "a\nb", "a\0", " a", "a ", "a\u{202e}b", "a\u{7f}"];
    let unseen =
        ["a\u{61c}b", "a\u{180e}b", "a\u{3164}b", "a\u{fe00}b", "a\u{e0041}b", "a\u{e01ef}b", "a\u{e0fff}b"];
    for bad in bad.into_iter().chain(unseen).chain([long.as_str()]) {
        assert_eq!(check_name(bad), Err(NameError), "{bad:?}");
    }
}

#[test]
fn an_image_is_known_by_its_bytes_and_tells_its_size() {
    assert_eq!(Image::read(&png_head(3, 70_000)), Some(of("image/png", Some((3, 70_000)))));
    let gif = [b"GIF89a".as_slice(), &[0x2c, 1, 2, 0]].concat();
    assert_eq!(Image::read(&gif), Some(of("image/gif", Some((300, 2)))));
    let segments: [&[u8]; 5] = [
        &[0xff, 0xd8],
        &[0xff, 0xe0, 0, 4, 1, 2],
        &[0xff, 0xff, 0xc4, 0, 3, 9],
        &[0xff, 0x01],
        &[0xff, 0xc2, 0, 17, 8, 1, 0, 2, 0],
    ];
    assert_eq!(Image::read(&segments.concat()), Some(of("image/jpeg", Some((512, 256)))));
    let webp = |chunk: &[u8], rest: &[u8]| [b"RIFF\0\0\0\0WEBP".as_slice(), chunk, &[0; 4], rest].concat();
    let lossy = webp(b"VP8 ", &[0, 0, 0, 0x9d, 0x01, 0x2a, 0x10, 0x40, 0x20, 0]);
    assert_eq!(Image::read(&lossy), Some(of("image/webp", Some((16, 32)))));
    // 14 bits of width less one, and then as many of height.
    let lossless = webp(b"VP8L", &[0x2f, 0x0f, 0xc0, 0x07, 0]);
    assert_eq!(Image::read(&lossless), Some(of("image/webp", Some((16, 32)))));
    let extended = webp(b"VP8X", &[0, 0, 0, 0, 15, 0, 0, 31, 1, 0]);
    assert_eq!(Image::read(&extended), Some(of("image/webp", Some((16, 288)))));
}

#[test]
fn what_begins_as_no_image_is_none_and_a_head_that_is_cut_off_has_no_size() {
    for nothing in [b"".as_slice(), b"GIF", b"%PDF-1.7", b"\x89PNG", b"RIFF\0\0\0\0WAVE", b"<svg xmlns='x'/>"]
    {
        assert_eq!(Image::read(nothing), None, "{nothing:?}");
    }
    assert_eq!(Image::read(&png_head(3, 4)[..22]), Some(of("image/png", None)));
    assert_eq!(Image::read(&png_head(0, 4)), Some(of("image/png", None)));
    assert_eq!(Image::read(b"\xff\xd8\xff\xda\0\0"), Some(of("image/jpeg", None)), "no frame");
    assert_eq!(
        Image::read(b"\xff\xd8\xff\xe0\0\0"),
        Some(of("image/jpeg", None)),
        "a segment without a length"
    );
    assert_eq!(Image::read(b"RIFF\0\0\0\0WEBPVP9 "), Some(of("image/webp", None)));
}

#[test]
fn what_is_taken_fits_into_a_request_and_one_request_into_a_run() {
    const { assert!(ATTACHMENT_BYTES <= ATTACHMENTS_BYTES && ATTACHMENTS_BYTES <= ATTACHMENTS * ATTACHMENT_BYTES) };
    const { assert!(ATTACHMENT_BODY_BYTES - ATTACHMENTS_BYTES.div_ceil(3) * 4 > API_BODY_BYTES) };
    let together = i64::try_from(ATTACHMENTS_BYTES).unwrap();
    assert!(together <= PENDING_ATTACHMENTS_BYTES);
    const { assert!(PENDING_ATTACHMENTS_BYTES <= RUN_ATTACHMENTS_BYTES) };
}

proptest! {
    #[test]
    fn no_head_is_read_beyond_its_end(
        head in prop_oneof![
            Just(b"\x89PNG\r\n\x1a\n".to_vec()), Just(b"\xff\xd8\xff".to_vec()), Just(b"GIF89a".to_vec()),
            Just(b"RIFF\0\0\0\0WEBPVP8 ".to_vec()), Just(b"RIFF\0\0\0\0WEBPVP8L".to_vec()), Just(b"RIFF\0\0\0\0WEBPVP8X".to_vec()),
        ],
        rest in prop::collection::vec(prop_oneof![Just(0xff_u8), any::<u8>()], 0..80),
    ) {
        let image = Image::read(&[head, rest].concat());
        prop_assert!(image.is_some());
    }
}
