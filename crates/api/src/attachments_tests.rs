use super::*;

/// The head of an image of that size.
fn png(width: u32, height: u32) -> Vec<u8> {
    let head = b"\x89PNG\r\n\x1a\n\0\0\0\x0dIHDR".to_vec();
    [head, width.to_be_bytes().to_vec(), height.to_be_bytes().to_vec()].concat()
}

fn of(name: &str, kind: Option<AttachmentKind>, content: &[u8]) -> CreateAttachment {
    CreateAttachment { name: name.to_owned(), kind, content: STANDARD.encode(content) }
}

/// What is checked, and field and code of each fault.
fn checked(attachments: Vec<CreateAttachment>) -> (Vec<NewAttachment>, Vec<(String, String)>) {
    let mut faults = Faults::default();
    let checked = check(attachments, &mut faults);
    let items = faults.into_items();
    (checked, items.into_iter().map(|fault| (fault.field.unwrap_or_default(), fault.code)).collect())
}

fn taken(body: &Value) -> (Vec<CreateAttachment>, Vec<(String, String)>) {
    let (mut fields, mut faults) =
        (Fields::parse(&serde_json::to_vec(body).unwrap()).unwrap(), Faults::default());
    let taken = take(&mut fields, &mut faults);
    let items = faults.into_items();
    (taken, items.into_iter().map(|fault| (fault.field.unwrap_or_default(), fault.code)).collect())
}

fn fault(field: &str, code: &str) -> Vec<(String, String)> {
    vec![(field.to_owned(), code.to_owned())]
}

#[test]
fn the_bytes_say_what_an_attachment_is_unless_the_request_does() {
    let kinds = |kind, content: &[u8]| {
        let (checked, faults) = checked(vec![of("photo.jpg", kind, content)]);
        assert_eq!(faults, []);
        (checked[0].what.kind, checked[0].what.media_type.clone())
    };
    let image = (AttachmentKind::Image, Some("image/png".to_owned()));
    assert_eq!(kinds(None, &png(2, 3)), image, "whatever its name is");
    assert_eq!(kinds(Some(AttachmentKind::Image), &png(2, 3)), image);
    assert_eq!(kinds(Some(AttachmentKind::File), &png(2, 3)), (AttachmentKind::File, None));
    assert_eq!(kinds(None, b"\xff\xd8 is no image"), (AttachmentKind::File, None));
    assert_eq!(kinds(None, b""), (AttachmentKind::File, None));
    let (checked, _) = checked(vec![of("a", None, b"hello\n")]);
    assert_eq!(checked[0].content, b"hello\n");
    let sha256 = "5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03";
    assert_eq!((checked[0].what.size_bytes, checked[0].what.sha256.as_str()), (6, sha256));
}

#[test]
fn an_image_that_is_none_or_damaged_or_too_large_is_refused() {
    for (kind, content, code) in [
        (Some(AttachmentKind::Image), b"%PDF-1.7".to_vec(), "not_an_image"),
        (None, png(2, 3)[..20].to_vec(), "image_damaged"),
        (None, png(0, 3), "image_damaged"),
        (None, png(IMAGE_SIDE_PX + 1, 1), "image_too_large"),
        (Some(AttachmentKind::Image), png(1, IMAGE_SIDE_PX + 1), "image_too_large"),
    ] {
        let (_, faults) = checked(vec![of("a.png", kind, &content)]);
        assert_eq!(faults, fault("attachments[0].content", code));
        let (_, faults) = checked(vec![of("a.png", Some(AttachmentKind::File), &content)]);
        assert_eq!(faults, [], "as a file it is taken");
    }
    let (largest, faults) = checked(vec![of("a.png", None, &png(IMAGE_SIDE_PX, IMAGE_SIDE_PX))]);
    assert_eq!((largest[0].what.kind, faults), (AttachmentKind::Image, Vec::new()));
}

#[test]
fn attachments_are_taken_at_their_bounds_and_refused_beyond() {
    let bytes = |count| vec![b'x'; count];
    let (largest, faults) = checked(vec![of("a", None, &bytes(ATTACHMENT_BYTES))]);
    assert_eq!((largest[0].content.len(), faults), (ATTACHMENT_BYTES, Vec::new()));
    for more in [1, 2, 3, 1000] {
        let (_, faults) = checked(vec![of("a", None, &bytes(ATTACHMENT_BYTES + more))]);
        assert_eq!(faults, fault("attachments[0].content", "attachment_too_large"), "{more}");
    }
    let both = |second| vec![of("a", None, &bytes(ATTACHMENT_BYTES)), of("b", None, &bytes(second))];
    let left = ATTACHMENTS_BYTES - ATTACHMENT_BYTES;
    assert_eq!(checked(both(left)).1, []);
    assert_eq!(checked(both(left + 1)).1, fault("attachments", "attachments_too_large"));
    let body = |count| serde_json::json!({ "attachments": vec![of("a", None, b"x"); count] });
    let (most, faults) = taken(&body(ATTACHMENTS));
    assert_eq!((most.len(), faults), (ATTACHMENTS, Vec::new()));
    assert_eq!(taken(&body(ATTACHMENTS + 1)).1, fault("attachments", "too_many"));
}

#[test]
fn each_fault_of_an_attachment_is_told_with_its_place() {
    for (attachments, field, code) in [
        (serde_json::json!("x"), "attachments", "wrong_type"),
        (serde_json::json!([1]), "attachments[0]", "wrong_type"),
        (serde_json::json!([{"name": "a"}]), "attachments[0].content", "missing_field"),
        (serde_json::json!([{"content": ""}]), "attachments[0].name", "missing_field"),
        (
            serde_json::json!([{"name": "a", "content": "", "kind": "video"}]),
            "attachments[0].kind",
            "invalid_value",
        ),
        (
            serde_json::json!([{"name": "a", "content": "", "path": "/x"}]),
            "attachments[0].path",
            "unknown_field",
        ),
    ] {
        let (_, faults) = taken(&serde_json::json!({ "attachments": attachments }));
        assert_eq!(faults, fault(field, code));
    }
    for nothing in [serde_json::json!({}), serde_json::json!({ "attachments": null })] {
        assert_eq!(taken(&nothing), (Vec::new(), Vec::new()));
    }
    let named = |name: &str| checked(vec![of("good", None, b"x"), of(name, None, b"x")]).1;
    assert_eq!(named("also good"), []);
    for bad in ["", "../etc/passwd", "a/b", "a\nb"] {
        assert_eq!(named(bad), fault("attachments[1].name", "name_invalid"), "{bad:?}");
    }
    for bad in ["a", "aGVsbG8", "aGVsbG8*", "aGVs bG8=", "aGVsbG9="] {
        let broken = CreateAttachment { content: bad.to_owned(), ..of("a", None, b"") };
        assert_eq!(checked(vec![broken]).1, fault("attachments[0].content", "not_base64"), "{bad}");
    }
}
