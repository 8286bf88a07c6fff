use super::*;

#[test]
fn faults_are_told_up_to_their_bound_and_counted_beyond() {
    let mut faults = Faults::default();
    for number in 0..FAULTS {
        faults.add(&format!("field{number}"), "unknown_field", "x");
    }
    assert_eq!(faults.count(), format!("{FAULTS} faults"));
    faults.add("one_more", "unknown_field", "x");
    assert_eq!(faults.count(), format!("{} faults, of which {FAULTS} are told", FAULTS + 1));
    assert!(!faults.mention("one_more"));
    assert_eq!(faults.items.len(), FAULTS);
}

#[test]
fn texts_of_a_fault_are_cut_at_their_bound() {
    let mut faults = Faults::default();
    faults.add(&"f".repeat(FAULT_TEXT_BYTES + 1), "x", "m".repeat(FAULT_TEXT_BYTES + 1));
    assert_eq!(faults.items[0].field.as_ref().unwrap().len(), FAULT_TEXT_BYTES);
    assert_eq!(faults.items[0].message.len(), FAULT_TEXT_BYTES);
}

#[test]
fn a_fault_of_the_server_tells_nothing_but_the_request_id() {
    let error = ApiError::internal("the secret reason");
    let (status, code) = error.status_and_code();
    let problem = error.into_told(status, code).with_request_id("req_1");
    assert_eq!(
        serde_json::to_value(problem).unwrap(),
        serde_json::json!({
            "type": "about:blank", "title": "Internal Server Error", "status": 500,
            "code": "internal", "request_id": "req_1",
        })
    );
}
