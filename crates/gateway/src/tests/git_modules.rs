//! What a push does to `.gitmodules`: read as git reads it, and within bounds.

use super::git_brought::{STRANGER, forbid, refused_for, seed, somebody, take};
use super::git_host::{git, git_with};
use super::git_scene::{Kind, Scene, scene};
use super::support::Setup;

type Shorten = fn(&mut Setup);

/// Largest `.gitmodules` that is read, in bytes.
const LARGEST: usize = 1024 * 1024;

fn module(number: u8) -> String {
    format!("[submodule \"x\"]\n\tpath = x\n\turl = ../{number}.git\n")
}

#[tokio::test]
async fn a_url_is_found_wherever_git_finds_it() {
    let scene = scene(Kind::Directory, |_| {}, |_| {}).await;
    for (settings, words) in [
        ("path = x\n\turl = https://evil.example/x.git # ]\n", "from elsewhere"),
        ("path = x\n\turl = https://evil.example/x.git?]\n", "from elsewhere"),
        ("path = x\n\t# c \\\n\turl = https://evil.example/x\n", "from elsewhere"),
        ("path = x\\\\\n\turl = https://evil.example/x\n", "from elsewhere"),
        ("path = x\n\turl = \"../two.git\n", "that git does not read to its end"),
    ] {
        scene.write(".gitmodules", &format!("[submodule \"x\"]\n\t{settings}"));
        scene.commit("x").await;
        let said = refused_for(&scene, "submodule", ".gitmodules").await;
        assert!(said.contains(words), "{settings:?}: {said}");
        git(&scene.work, &["reset", "-q", "--hard", "origin/main"]).await;
    }
    scene.write(".gitmodules", "[submodule \"a]b\"] path = \"x\\\\\" ; \\\n\turl = \"../two.git\" # ]\n");
    scene.commit("x").await;
    scene.accepted(&[]).await;
    scene.world.stop().await;
}

#[tokio::test]
async fn a_gitmodules_beyond_its_bound_is_refused() {
    let scene = scene(Kind::Directory, |_| {}, |_| {}).await;
    let of = |bytes: usize| {
        let text = module(1);
        let fill = "x".repeat(bytes - text.len() - 2);
        format!("{text}#{fill}\n")
    };
    // Git itself looks at what comes by that name.
    scene.write("innocent", &of(LARGEST + 1));
    scene.commit("prepare").await;
    scene.accepted(&[]).await;
    git(&scene.work, &["mv", "innocent", ".gitmodules"]).await;
    scene.commit("too large").await;
    let said = refused_for(&scene, "submodule", ".gitmodules").await;
    assert!(said.contains("of more than 1048576 bytes"), "{said}");
    git(&scene.work, &["reset", "-q", "--hard", "HEAD~1"]).await;
    scene.write(".gitmodules", &of(LARGEST));
    scene.commit("large").await;
    scene.accepted(&[]).await;
    scene.world.stop().await;
}

fn bytes_of_two() -> u64 {
    2 * module(1).len() as u64
}

#[tokio::test]
async fn all_versions_of_gitmodules_are_read_up_to_a_bound() {
    let cases: [(Shorten, bool); 4] = [
        (|setup| setup.bounds.push.gitmodules_bytes = bytes_of_two(), true),
        (|setup| setup.bounds.push.gitmodules_bytes = bytes_of_two() - 1, false),
        (|setup| setup.bounds.push.gitmodules_urls = 2, true),
        (|setup| setup.bounds.push.gitmodules_urls = 1, false),
    ];
    for (shorten, fits) in cases {
        let scene = scene(Kind::Host, shorten, |_| {}).await;
        for number in [1, 2] {
            scene.write(".gitmodules", &module(number));
            scene.commit("one more").await;
        }
        if fits {
            scene.accepted(&[]).await;
        } else {
            let (denied, said) = scene.refused(&[]).await;
            assert_eq!(denied["rule"], "pack");
            assert!(
                said.contains("versions of .gitmodules") && said.contains("push fewer commits"),
                "{said}"
            );
            // One at a time is what it says.
            git(&scene.work, &["reset", "-q", "--hard", "origin/main"]).await;
            scene.write(".gitmodules", &module(1));
            scene.commit("one").await;
            scene.accepted(&[]).await;
        }
        scene.world.stop().await;
    }
}

/// Pushes what the bound lets pass, or what is refused in these words.
async fn push_within(scene: Scene, fits: bool, words: &str) {
    if fits {
        scene.accepted(&[]).await;
    } else {
        let (denied, said) = scene.refused(&[]).await;
        assert_eq!(denied["rule"], "pack");
        assert!(said.contains(words), "{said}");
    }
    scene.world.stop().await;
}

#[tokio::test]
async fn what_versions_name_is_compared_up_to_a_bound() {
    let both = format!("{}[submodule \"y\"]\n\tpath = y\n\turl = ../2.git\n", module(1));
    let (one, both) = (module(1), both.as_str());
    // Each file is read once: three URLs, all of them compared, and one more when the first comes again.
    let cases = [(vec![one.as_str(), both], true), (vec![one.as_str(), both, one.as_str()], false)];
    for (versions, fits) in cases {
        let scene = scene(Kind::Host, |setup| setup.bounds.push.gitmodules_urls = 3, |_| {}).await;
        for version in versions {
            scene.write(".gitmodules", version);
            scene.commit("one more").await;
        }
        push_within(scene, fits, "name more than 3 URLs").await;
    }
}

#[tokio::test]
async fn a_commit_that_names_a_parent_twice_is_refused() {
    let scene = scene(Kind::Host, |_| {}, |_| {}).await;
    let (head, tree) = (
        git(&scene.work, &["rev-parse", "HEAD"]).await,
        git(&scene.work, &["rev-parse", "HEAD^{tree}"]).await,
    );
    for times in [1, 2] {
        let parents = format!("parent {head}\n").repeat(times);
        let who = "A <a@example.com> 1 +0000";
        let text = format!("tree {tree}\n{parents}author {who}\ncommitter {who}\n\nfeat: x\n");
        let arguments = ["hash-object", "-t", "commit", "--literally", "-w", "--stdin"];
        let commit = git_with(&scene.work, &arguments, text.as_bytes()).await.trim().to_owned();
        git(&scene.work, &["reset", "-q", "--hard", &commit]).await;
        if times == 1 {
            scene.accepted(&[]).await;
            continue;
        }
        let (denied, said) = scene.refused(&["--force-with-lease"]).await;
        assert_eq!(denied["rule"], "pack");
        assert!(said.contains("one of them twice; make the commits with git"), "{said}");
    }
    scene.world.stop().await;
}

/// What `git diff-tree --raw -z` says of one file that differs, `src/a`.
const DIFFERENCE_BYTES: u64 = 105;

#[tokio::test]
async fn what_is_brought_is_compared_up_to_a_bound() {
    let most: fn(&mut Setup) = |setup| {
        forbid(setup);
        setup.bounds.push.difference_bytes = DIFFERENCE_BYTES;
    };
    let less: fn(&mut Setup) = |setup| {
        forbid(setup);
        setup.bounds.push.difference_bytes = DIFFERENCE_BYTES - 1;
    };
    for (shorten, fits) in [(most, true), (less, false)] {
        let scene = scene(Kind::Host, shorten, seed).await;
        somebody(&scene, ("main", STRANGER), "src/a", "a stranger's\n").await;
        take(&scene, STRANGER).await;
        push_within(scene, fits, "differs in more than 104 bytes").await;
    }
}
