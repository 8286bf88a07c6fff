use super::*;

#[test]
fn an_amount_in_usd_is_read_without_rounding() {
    for (text, micro) in
        [("1.50", 1_500_000), ("2", 2_000_000), (".25", 250_000), ("0.000001", 1), ("4000", 4_000_000_000)]
    {
        assert_eq!(micro_usd(text), Ok(micro), "{text}");
    }
    for bad in ["", ".", "0", "-1", "1,5", "1e3", "0.0000001", "4000.000001", "99999999999", "one"] {
        assert!(micro_usd(bad).is_err(), "{bad}");
    }
}

#[test]
fn the_life_of_a_key_has_a_unit_and_bounds() {
    assert_eq!(life_s("30d"), Ok(30 * 24 * 60 * 60));
    assert_eq!((life_s("60s"), life_s("1m"), life_s("2w")), (Ok(60), Ok(60), Ok(14 * 24 * 60 * 60)));
    assert_eq!(life_s("3650d"), Ok(API_KEY_LIFE_S_MAX));
    for bad in ["", "d", "30", "59s", "3651d", "-1d", "1.5d", "99999999999d", "4294967295w", "30 d"] {
        assert!(life_s(bad).is_err(), "{bad}");
    }
}
