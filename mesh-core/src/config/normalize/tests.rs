//! Tables after Envoy's and the URL standard's, and properties over generated paths.

use super::*;
use crate::rng::{Rng, SplitMix64};

const MERGE: PathNormalization = PathNormalization {
    merge_slashes: true,
    ..PathNormalization::BASE
};
const DECODE: PathNormalization = PathNormalization {
    escaped_slashes: EscapedSlashes::Decode,
    ..MERGE
};

fn serve(options: PathNormalization, path: &str) -> String {
    match options.apply(path) {
        NormalizedPath::Serve(path) => path.into_owned(),
        other => panic!("{path}: {other:?}"),
    }
}

#[test]
fn base_resolves_dots_and_decodes_what_needs_no_escape() {
    for (path, canonical) in [
        ("/", "/"),
        ("/a/b", "/a/b"),
        ("/a/./b", "/a/b"),
        ("/a/../b", "/b"),
        ("/a/b/..", "/a/"),
        ("/a/.", "/a/"),
        ("/../../a", "/a"),
        ("/..", "/"),
        ("/.hidden/..a/a..", "/.hidden/..a/a.."),
        ("/a/%2e%2E/b", "/b"),
        ("/a/%2e./b", "/b"),
        ("/a/.%2e", "/"),
        ("/%61dmin", "/admin"),
        ("/%7Eme", "/~me"),
        ("/a%2Fb", "/a%2Fb"),
        ("/a%5cb", "/a%5cb"),
        (r"/a\b", "/a/b"),
        (r"/a\..\b", "/b"),
        ("//a//b", "//a//b"),
        ("/a//../b", "/a/b"),
        ("/a%", "/a%"),
        ("/a%zz", "/a%zz"),
        ("/a%2", "/a%2"),
        ("/ü", "/%C3%BC"),
        ("/a^b|c", "/a%5Eb%7Cc"),
        ("/a[b]", "/a[b]"),
        ("/a?x=/../%2F\\", "/a?x=/../%2F\\"),
        ("/a/../b?c", "/b?c"),
        ("a", "/a"),
    ] {
        assert_eq!(serve(PathNormalization::BASE, path), canonical, "{path}");
    }
    let nul = PathNormalization::BASE.apply("/a%00b");
    assert_eq!(nul, NormalizedPath::Reject);
}

#[test]
fn slashes_are_merged_and_decoded_where_that_is_asked_for() {
    for (path, merged, decoded) in [
        ("//admin", "/admin", "/admin"),
        ("/a///b//", "/a/b/", "/a/b/"),
        ("/a%2fadmin", "/a%2fadmin", "/a/admin"),
        ("/%2Fadmin", "/%2Fadmin", "/admin"),
        ("/a%5C..%2Fadmin", "/a%5C..%2Fadmin", "/admin"),
        ("/a/%2e%2e%2f%2fb", "/a/..%2f%2fb", "/b"),
        ("/a?b=//%2F", "/a?b=//%2F", "/a?b=//%2F"),
    ] {
        assert_eq!(serve(MERGE, path), merged, "{path}");
        assert_eq!(serve(DECODE, path), decoded, "{path}");
    }
    let with = |escaped_slashes| PathNormalization {
        escaped_slashes,
        ..PathNormalization::BASE
    };
    let reject = with(EscapedSlashes::Reject);
    assert_eq!(reject.apply("/a%2fb"), NormalizedPath::Reject);
    assert_eq!(serve(reject, "/a?%2f"), "/a?%2f");
    let redirect = with(EscapedSlashes::Redirect);
    let there = NormalizedPath::Redirect("/c/b?q".into());
    assert_eq!(redirect.apply("/a/..%2fc%2Fb?q"), there);
    assert_eq!(serve(redirect, "/a/../b"), "/b");
}

#[test]
fn without_options_a_path_stays_as_it_is_and_usual_paths_are_not_copied() {
    for path in ["/a/../b", "//a", "/a%2fb", "/%00"] {
        assert_eq!(serve(PathNormalization::default(), path), path);
    }
    for options in [
        PathNormalization::default(),
        PathNormalization::BASE,
        DECODE,
    ] {
        let usual = options.apply("/mesh.Greeter/SayHello?q=1");
        assert!(matches!(usual, NormalizedPath::Serve(Cow::Borrowed(_))));
    }
    let plain = DECODE.apply("/orders/1");
    assert!(matches!(plain, NormalizedPath::Serve(Cow::Borrowed(_))));
}

/// A path out of pieces that matter.
fn generated(rng: &mut SplitMix64) -> String {
    const PIECES: [&str; 20] = [
        "/", "/", "/", ".", "..", "%2e", "%2E", "%2f", "%2F", "%5c", "\\", "a", "admin", "%61",
        "%", "%2", "//", "%25", "?", "ü",
    ];
    let mut path = String::from("/");
    for _ in 0..rng.next_u64() % 12 {
        path.push_str(PIECES[(rng.next_u64() % PIECES.len() as u64) as usize]);
    }
    path
}

/// Whatever comes in, what goes out has no spelling of a parent left, and is its own spelling.
#[test]
fn what_is_normalised_holds_no_dot_segment_and_is_a_fixed_point() {
    let rounds = std::env::var("MESH_FUZZ_ROUNDS").ok();
    let rounds = rounds.and_then(|n| n.parse().ok()).unwrap_or(20_000_u64);
    let mut rng = SplitMix64::new(7);
    for _ in 0..rounds {
        let path = generated(&mut rng);
        let once = serve(DECODE, &path);
        let bare = once.split('?').next().unwrap_or_default();
        assert!(bare.starts_with('/'), "{path} became {once}");
        assert!(
            !bare.contains("//") && !bare.contains('\\'),
            "{path} became {once}"
        );
        let is_dots = |segment: &str| segment == "." || segment == "..";
        assert!(!bare.split('/').any(is_dots), "{path} became {once}");
        // A stray `%` may meet what was decoded behind it: that is the one way to a new escape.
        if !path.contains("%%")
            && !path.contains("%25")
            && !path.contains("%2%")
            && !path.split('%').skip(1).any(|after| after.len() < 2)
        {
            assert_eq!(serve(PathNormalization::BASE, bare), bare, "{path}");
        }
    }
}
