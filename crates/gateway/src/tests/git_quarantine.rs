//! Pushes in quarantine: nothing that must not be pushed reaches the repository, whatever it is wrapped in.

use std::path::Path;

use caisson_domain::credential::{CredentialKind, CredentialSecret};

use super::git_host::{git, git_with};
use super::git_scene::{BRANCH, KINDS, Kind, scene};
use super::support::{GIT_TOKEN, MODEL_KEY, OK, value};

/// Put together here, so that no scanner takes this file for a leak.
fn token(digit: char) -> String {
    format!("ghp_{}", digit.to_string().repeat(36))
}

/// What the repository has already is in no pack of an honest push, and git looks into files of these names.
#[tokio::test]
async fn a_push_need_not_bring_the_attributes_and_modules_that_are_there() {
    for kind in KINDS {
        let seed = |seeding: &Path| {
            let files = [
                (".gitattributes", "* text=auto\n"),
                ("sub/.gitattributes", "* -diff\n"),
                (".gitmodules", "[submodule \"x\"]\n\tpath = x\n\turl = ../two.git\n"),
            ];
            std::fs::create_dir(seeding.join("sub")).unwrap();
            for (path, text) in files {
                std::fs::write(seeding.join(path), text).unwrap();
            }
        };
        let scene = scene(kind, |_| {}, seed).await;
        scene.write("sub/a", "changed\n");
        scene.commit("change a file beside them").await;
        scene.accepted(&[]).await;
        // What git finds in files of these names is refused as before, however many of the others are missing.
        let bad = "[submodule \"x\"]\n\tpath = x\n\turl = -oops\n";
        scene.write(".gitmodules", bad);
        for number in 0..200 {
            scene.write(&format!("sub/{number}/a"), &format!("{number}\n"));
            scene.write(&format!("sub/{number}/.gitattributes"), "* -diff\n");
        }
        scene.commit("change them").await;
        let said = scene.refused(&[]).await.1;
        assert!(said.contains("gitmodulesUrl"), "{said}");
        scene.world.stop().await;
    }
}

/// Git says of links with these names that it will not follow them, and takes them.
#[tokio::test]
async fn what_git_only_warns_of_does_not_refuse_a_push_that_need_not_bring_the_attributes() {
    for kind in KINDS {
        let seed = |seeding: &Path| std::fs::write(seeding.join(".gitattributes"), "* text=auto\n").unwrap();
        let scene = scene(kind, |_| {}, seed).await;
        for name in [".gitignore", ".mailmap"] {
            std::os::unix::fs::symlink("a", scene.work.join(name)).unwrap();
        }
        scene.write("a", "changed\n");
        scene.commit("add links").await;
        scene.accepted(&[]).await;
        scene.write(".gitmodules", "[submodule \"x\"]\n\tpath = x\n\turl = -oops\n");
        scene.commit("add what it does not take").await;
        let said = scene.refused(&[]).await.1;
        assert!(said.contains("gitmodulesUrl"), "{said}");
        scene.world.stop().await;
    }
}

#[tokio::test]
async fn a_secret_in_an_added_file_is_refused_and_said_where_but_not_what() {
    for kind in KINDS {
        let scene = scene(kind, |_| {}, |_| {}).await;
        scene.write("conf/app.env", &format!("A=1\nB=2\nTOKEN={}\n", token('4')));
        let commit = scene.commit("add settings").await;
        let (denied, said) = scene.refused(&[]).await;
        assert_eq!(
            (&denied["rule"], &denied["secret_rule"], &denied["path"], &denied["line"], &denied["commit"]),
            (
                &"secret".into(),
                &"github-token".into(),
                &"conf/app.env".into(),
                &3.into(),
                &commit.clone().into()
            )
        );
        let place = format!("in conf/app.env line 3 of commit {}", &commit[..12]);
        assert!(said.contains(&place), "{said}");
        assert!(!said.contains(&token('4')) && !denied.to_string().contains(&token('4')));
        git(&scene.work, &["reset", "-q", "--hard", "HEAD~1"]).await;
        scene.write("conf/app.env", "A=1\n");
        scene.commit("add settings").await;
        scene.accepted(&[]).await;
        scene.world.stop().await;
        scene.world.store.close().await.unwrap();
        assert!(
            !std::fs::read(scene.world.root.path().join("caisson.db"))
                .unwrap()
                .windows(40)
                .any(|window| window == token('4').as_bytes())
        );
    }
}

#[tokio::test]
async fn a_secret_that_was_there_before_passes_wherever_its_file_goes() {
    for kind in KINDS {
        let scene = scene(
            kind,
            |_| {},
            |seeding| {
                std::fs::write(
                    seeding.join("old.env"),
                    format!("TOKEN={}\n{}", token('5'), "line\n".repeat(50)),
                )
                .unwrap();
            },
        )
        .await;
        let text = std::fs::read_to_string(scene.work.join("old.env")).unwrap();
        scene.write("old.env", &format!("{text}one more\n"));
        scene.commit("edit").await;
        scene.accepted(&[]).await;
        git(&scene.work, &["mv", "old.env", "new.env"]).await;
        scene.write("new.env", &format!("first\n{text}"));
        scene.commit("move").await;
        scene.accepted(&[]).await;
        // Another one beside it does not.
        scene.write("new.env", &format!("first\n{text}TOKEN={}\n", token('6')));
        scene.commit("add").await;
        let (denied, _) = scene.refused(&[]).await;
        assert_eq!((&denied["path"], &denied["line"]), (&"new.env".into(), &53.into()));
        assert_eq!(scene.denied().await.len(), 1);
        scene.world.stop().await;
    }
}

#[tokio::test]
async fn secrets_of_before_are_known_in_so_many_files_and_beyond_them_count_as_new() {
    for kind in KINDS {
        let scene = scene(
            kind,
            |setup| setup.bounds.push.old_files = 2,
            |seeding| {
                for (name, digit) in [("a", '5'), ("b", '6'), ("c", '7')] {
                    std::fs::write(seeding.join(name), format!("TOKEN={}\n", token(digit))).unwrap();
                }
            },
        )
        .await;
        let edit = |names: &[&str]| {
            for name in names {
                let text = std::fs::read_to_string(scene.work.join(name)).unwrap();
                scene.write(name, &format!("{text}one more\n"));
            }
        };
        edit(&["a", "b"]);
        scene.commit("edit two").await;
        scene.accepted(&[]).await;
        edit(&["a", "b", "c"]);
        let commit = scene.commit("edit three").await;
        let (denied, _) = scene.refused(&[]).await;
        assert_eq!((&denied["rule"], &denied["commit"]), (&"secret".into(), &commit.into()));
        scene.world.stop().await;
    }
}

#[tokio::test]
async fn a_secret_in_a_commit_between_is_refused_though_the_last_one_has_it_no_more() {
    for kind in KINDS {
        let scene = scene(kind, |_| {}, |_| {}).await;
        scene.commit("first").await;
        scene.write("x", &token('7'));
        let between = scene.commit("second").await;
        scene.write("x", &format!("{}\nmore\n", token('7')));
        scene.commit("third").await;
        scene.write("x", "clean");
        scene.commit("fourth").await;
        let (denied, _) = scene.refused(&[]).await;
        assert_eq!((&denied["commit"], &denied["path"]), (&between.into(), &"x".into()));
        assert_eq!(scene.denied().await.len(), 1, "told once, where it came in");
        scene.world.stop().await;
    }
}

#[tokio::test]
async fn a_credential_of_the_server_passes_in_no_spelling_and_no_place() {
    use base64::Engine;
    let scene = scene(Kind::Host, |_| {}, |_| {}).await;
    let base = git(&scene.work, &["rev-parse", "HEAD"]).await;
    let encoded = base64::engine::general_purpose::STANDARD.encode(format!("robot:{GIT_TOKEN}"));
    for (path, text, message) in [
        ("a", MODEL_KEY, "m"),
        ("a", encoded.as_str(), "m"),
        ("a", &hex::encode(GIT_TOKEN), "m"),
        ("a", "x", &format!("with {GIT_TOKEN} in its message")),
        (&format!("dir/{MODEL_KEY}"), "x", "m"),
    ] {
        scene.write(path, text);
        scene.commit(message).await;
        let (denied, said) = scene.refused(&[]).await;
        assert_eq!(denied["secret_rule"], "live-credential", "{path} {message}");
        for secret in [MODEL_KEY, GIT_TOKEN, &encoded] {
            assert!(!said.contains(secret) && !denied.to_string().contains(secret), "{said}");
        }
        git(&scene.work, &["reset", "-q", "--hard", &base]).await;
    }
    scene.world.stop().await;
}

#[tokio::test]
async fn what_no_commit_leads_to_is_looked_at_as_well() {
    let scene = scene(Kind::Host, |_| {}, |_| {}).await;
    let new = scene.commit("harmless").await;
    let hidden = git_with(&scene.work, &["hash-object", "-w", "--stdin"], token('8').as_bytes()).await;
    let pack = scene.pack(&[], &format!("{new}\n{hidden}\n")).await;
    let reply = scene.forge(&new, "", &pack).await;
    assert!(reply.text().contains("caisson: a secret, by rule github-token"), "{}", reply.text());
    let pack = scene.pack(&[], &format!("{new}\n")).await;
    let reply = scene.forge(&new, "", &pack).await;
    assert!(
        reply.status == OK && reply.text().contains(&format!("ok refs/heads/{BRANCH}")),
        "{}",
        reply.text()
    );
    scene.world.stop().await;
}

#[tokio::test]
async fn a_pack_that_is_none_or_not_whole_is_refused_before_anything_is_forwarded() {
    for kind in KINDS {
        let scene = scene(
            kind,
            |_| {},
            |seeding| {
                std::fs::write(seeding.join("long"), "a line of it\n".repeat(500)).unwrap();
            },
        )
        .await;
        scene.write("long", &format!("{}changed\n", "a line of it\n".repeat(500)));
        let new = scene.commit("change").await;
        let before = scene.refs().await;
        let list = format!("{new}\n^{new}~1\n");
        let whole = scene.pack(&["--revs"], &list).await;
        let stdout = git_thin(&scene.work, &list).await;
        let cut = &whole[..whole.len() - 3];
        let tailed = [&whole[..], b"and more"].concat();
        let mut flipped = whole.clone();
        let middle = flipped.len() / 2;
        flipped[middle] ^= 1;
        for (pack, said) in [
            (&b""[..], "is no pack"),
            (b"not a pack at all", "is no pack"),
            (cut, "the pack was refused"),
            (&tailed, "junk at the end"),
            (&flipped, "the pack was refused"),
            (&stdout, "builds on objects that it does not hold"),
        ] {
            let reply = scene.forge(&new, "", pack).await;
            assert!(reply.status == OK && reply.text().contains(said), "{kind:?} {said}: {}", reply.text());
            assert!(reply.text().contains(&format!("ng refs/heads/{BRANCH} caisson: ")), "{}", reply.text());
        }
        assert_eq!(scene.refs().await, before);
        // Nor does a capability get through that nobody asked for.
        let reply = scene.forge(&new, "push-cert=x\0atomic", &whole).await;
        assert!(reply.text().contains("ok refs/heads/"), "{}", reply.text());
        scene.world.stop().await;
    }
}

/// A thin pack, as a git makes it that was not asked for whole ones.
async fn git_thin(work: &std::path::Path, list: &str) -> Vec<u8> {
    let file = work.join("../thin");
    let alias = format!("!git pack-objects -q --revs --thin --stdout > {}", file.display());
    git_with(work, &["-c", &format!("alias.thin={alias}"), "thin"], list.as_bytes()).await;
    let pack = std::fs::read(&file).unwrap();
    assert!(pack.starts_with(b"PACK"));
    pack
}

#[tokio::test]
async fn a_push_that_is_more_than_it_may_be_is_refused_and_said_so() {
    let scene = scene(
        Kind::Directory,
        |setup| {
            setup.bounds.push.commits = 3;
            setup.bounds.push.objects = 40;
            setup.bounds.push.path_depth = 5;
            setup.bounds.push.paths = 1000;
            setup.git.pushes.file_bytes = 5000;
        },
        |_| {},
    )
    .await;
    let base = git(&scene.work, &["rev-parse", "HEAD"]).await;
    let reset = async || git(&scene.work, &["reset", "-q", "--hard", &base]).await;
    for number in 0..4 {
        scene.commit(&number.to_string()).await;
    }
    assert!(scene.refused(&[]).await.1.contains("more than 3 commits"));
    reset().await;
    for number in 0..40 {
        scene.write(&format!("d/{number}"), &number.to_string());
    }
    scene.commit("many").await;
    assert!(scene.refused(&[]).await.1.contains("more objects than 40"));
    reset().await;
    scene.write("1/2/3/4/5/f", "x");
    scene.commit("deep").await;
    assert!(scene.refused(&[]).await.1.contains("more than 5 deep"));
    reset().await;
    scene.write("big", &"x".repeat(5001));
    let commit = scene.commit("big").await;
    let (denied, _) = scene.refused(&[]).await;
    assert_eq!(
        (&denied["rule"], &denied["path"], &denied["commit"]),
        (&"file_size".into(), &"big".into(), &commit.into())
    );
    reset().await;
    // A checkout of a few small objects can be endless.
    let blob = git_with(&scene.work, &["hash-object", "-w", "--stdin"], b"x").await;
    let mut tree = String::new();
    for level in 0..3 {
        let (mode, kind, id) = if level == 0 { ("100644", "blob", &blob) } else { ("040000", "tree", &tree) };
        let entries: String =
            (0..11).map(|number| format!("{mode} {kind} {id}\t{number}\n")).collect::<Vec<_>>().concat();
        tree = git_with(&scene.work, &["mktree"], entries.as_bytes()).await;
    }
    let bomb = git(&scene.work, &["commit-tree", "-p", "HEAD", "-m", "bomb", &tree]).await;
    git(&scene.work, &["reset", "-q", "--soft", &bomb]).await;
    assert!(scene.refused(&[]).await.1.contains("more than 1000 files"));
    git(&scene.work, &["reset", "-q", "--hard", &base]).await;
    scene.write("fine", &"x".repeat(5000));
    scene.commit("fine").await;
    scene.accepted(&[]).await;
    scene.world.stop().await;
}

#[tokio::test]
async fn a_delta_that_unfolds_beyond_the_bounds_is_refused() {
    let scene = scene(
        Kind::Host,
        |setup| {
            setup.bounds.git_alloc_bytes = 4 << 20;
            setup.bounds.push.delta_depth = 0;
        },
        |_| {},
    )
    .await;
    let base = git(&scene.work, &["rev-parse", "HEAD"]).await;
    let zeros = "0".repeat(6 << 20);
    scene.write("a", &zeros);
    scene.write("b", &format!("{zeros}1"));
    scene.commit("bomb").await;
    let large = ["-c", "core.bigFileThreshold=1g", "push", "origin"];
    let own = format!("HEAD:{BRANCH}");
    let pushed = scene.client.git("work", &[&large[..], &[&own]].concat()).await;
    assert!(!pushed.ok && pushed.said.contains("attempting to allocate"), "{}", pushed.said);
    git(&scene.work, &["reset", "-q", "--hard", &base]).await;
    let noise: String = (0..2000_u32)
        .map(|number| format!("{:08x}\n", number.wrapping_mul(2_654_435_761)))
        .collect::<Vec<_>>()
        .concat();
    for number in 0..8 {
        scene.write("chain", &format!("{noise}{}", "more\n".repeat(number)));
        scene.commit("chain").await;
    }
    let (denied, said) = scene.refused(&[]).await;
    assert!(denied["rule"] == "pack" && said.contains("chains of deltas are longer than 0"), "{said}");
    git(&scene.work, &["config", "pack.window", "0"]).await;
    scene.accepted(&[]).await;
    scene.world.stop().await;
}

#[tokio::test]
async fn a_push_for_which_the_disk_has_no_room_is_not_taken() {
    let scene = scene(Kind::Directory, |setup| setup.bounds.push.free_bytes = u64::MAX, |_| {}).await;
    scene.commit("x").await;
    let pushed = scene.push(&[]).await;
    assert!(!pushed.ok, "{}", pushed.said);
    let reply = scene.forge(&"1".repeat(40), "", b"PACK").await;
    assert_eq!((reply.status, reply.code().as_str()), (503, "disk_full"));
    scene.world.stop().await;
}

#[tokio::test]
async fn a_stored_credential_is_refused_from_its_adding_and_its_rotation_on() {
    let scene = scene(Kind::Directory, |_| {}, |_| {}).await;
    scene.world.unlock().await;
    let secret = |text: &str| CredentialSecret::Value { value: text.to_owned().into(), proxy_login: None };
    let settings = [("url_prefix", "https://other.example/team")];
    let kind = CredentialKind::GitToken;
    let stored = scene.world.add_credential("other", kind, &settings, secret("first-of-the-store")).await;
    for text in ["first-of-the-store", "second-of-the-store"] {
        scene.write("notes.txt", &format!("one\n{text}\n"));
        scene.commit("take notes").await;
        let (denied, said) = scene.refused(&[]).await;
        assert_eq!((&denied["rule"], &denied["line"]), (&"secret".into(), &2.into()));
        assert!(!said.contains(text), "{said}");
        git(&scene.work, &["reset", "-q", "--hard", "HEAD~1"]).await;
        scene.world.rotate(&stored, &secret("second-of-the-store")).await;
    }
    scene.write("notes.txt", "nothing of the store\n");
    scene.commit("take notes").await;
    scene.accepted(&[]).await;
    scene.world.stop().await;
}

#[tokio::test]
async fn the_token_of_an_mcp_header_is_refused_before_any_server_was_sent_it() {
    let scene = scene(Kind::Directory, |_| {}, |_| {}).await;
    scene.world.unlock().await;
    let settings = [("url", "https://mcp.example.com/"), ("header", "Authorization")];
    let header = value("Bearer token-of-notes-1");
    scene.world.add_credential("notes", CredentialKind::McpHeader, &settings, header).await;
    scene.write("a", "it is token-of-notes-1\n");
    scene.commit("a").await;
    assert_eq!(scene.refused(&[]).await.0["secret_rule"], "live-credential");
    scene.world.stop().await;
}
