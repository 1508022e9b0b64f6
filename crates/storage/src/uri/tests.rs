use super::*;

fn error(uri: &str, options: &OpenOptions) -> String {
    match open(uri, options) {
        Ok(disk) => panic!("{uri} opened as {}", disk.name()),
        Err(e) => {
            let text = e.to_string();
            assert!(!text.contains('\n'), "more than one line: {text}");
            text
        }
    }
}

#[test]
fn an_unknown_scheme_is_refused_with_the_nearest_name() {
    let text = error("flie:/tmp/x", &OpenOptions::default());
    assert!(
        text.contains("\"flie\"") && text.contains("did you mean \"file\""),
        "{text}"
    );
    let text = error("ceph:pool/image", &OpenOptions::default());
    assert!(text.contains("file, ram, null, delay"), "{text}");
}

#[test]
fn a_slash_before_the_colon_makes_it_a_path() {
    assert_eq!(split_scheme("./ram:1G"), None);
    assert_eq!(split_scheme("/a/b:c"), None);
    assert_eq!(split_scheme("ram:1G"), Some(("ram", "1G")));
    assert_eq!(
        split_scheme("delay:1ms:file:/a:b"),
        Some(("delay", "1ms:file:/a:b"))
    );
}

#[test]
fn sized_disks_are_as_large_as_their_names_say() {
    for uri in [
        "ram:1.5M",
        "null:1.5M",
        "delay:1us-2us:ram:1.5M",
        "delay:1us:delay:1us:null:1.5M",
    ] {
        let disk = open(uri, &OpenOptions::default()).unwrap();
        assert_eq!((disk.size(), disk.name()), (3 << 19, uri));
        assert_eq!(disk.limits().logical_block, 512);
        assert!(!disk.is_read_only());
    }
}

#[test]
fn the_block_size_is_taken_and_the_size_must_fit_it() {
    let options = OpenOptions {
        block_size: Some(4096),
        ..Default::default()
    };
    assert_eq!(
        open("ram:8k", &options).unwrap().limits().logical_block,
        4096
    );
    assert!(error("ram:6k", &options).contains("not a multiple of the block size 4096"));
    assert!(
        error("ram:100", &OpenOptions::default()).contains("not a multiple of the block size 512")
    );
    for size in [0, 256, 1000, 131_072] {
        let options = OpenOptions {
            block_size: Some(size),
            ..Default::default()
        };
        assert!(error("ram:1M", &options).contains("power of two"), "{size}");
    }
}

#[test]
fn bad_names_say_what_is_missing() {
    let options = OpenOptions::default();
    assert!(error("", &options).contains("empty"));
    assert!(error("file:", &options).contains("empty"));
    assert!(error("ram:", &options).contains("no number"));
    assert!(error("null:0", &options).contains("no bytes"));
    assert!(error("ram:15E", &options).contains("memory"));
    assert!(error("delay:ram:1M", &options).contains("duration"));
    assert!(error("delay:1ms", &options).contains("delay:MIN-MAX:URI"));
    assert!(error("delay:2ms-1ms:ram:1M", &options).contains("longer"));
    assert!(error("delay:1ms:delay:1ms:rma:1M", &options).contains("did you mean \"ram\""));
}

#[test]
fn cache_modes_go_by_their_names() {
    for (name, mode) in CacheMode::NAMES {
        assert_eq!(name.parse::<CacheMode>().unwrap(), mode);
        assert_eq!(mode.to_string(), name);
    }
    let text = "writetrough".parse::<CacheMode>().unwrap_err().to_string();
    assert!(text.contains("\"writethrough\""), "{text}");
}
