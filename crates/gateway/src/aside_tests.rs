use tokio::io::AsyncReadExt;
use tokio::task::JoinHandle;

use super::*;

/// Whatever takes longer is a fault.
const PATIENCE: Duration = Duration::from_secs(30);

/// A connection that is carried.
struct Scene {
    sandbox: UnixStream,
    door: Carried,
    closed: CancellationToken,
    bridge: JoinHandle<()>,
}

fn scene(room_for_ending: usize) -> Scene {
    let (sandbox, socket) = UnixStream::pair().unwrap();
    let (inside, bytes) = duplex(UNDER_WAY_BYTES);
    let (dropped, closed) = (CancellationToken::new(), CancellationToken::new());
    let (ending, until) = (Semaphore::new(room_for_ending), closed.clone());
    let door = Carried { bytes, _dropped: dropped.clone().drop_guard() };
    #[expect(clippy::disallowed_methods, reason = "a test's own task, which it waits for")]
    let bridge = tokio::spawn(async move { bridge(socket, inside, &dropped, (&ending, &until)).await });
    Scene { sandbox, door, closed, bridge }
}

async fn all(from: &mut (impl AsyncRead + Unpin)) -> Vec<u8> {
    let mut bytes = Vec::new();
    timeout(PATIENCE, from.read_to_end(&mut bytes)).await.unwrap().unwrap();
    bytes
}

async fn ended(bridge: JoinHandle<()>) {
    timeout(PATIENCE, bridge).await.unwrap().unwrap();
}

#[tokio::test]
async fn each_direction_ends_by_itself() {
    for sandbox_first in [true, false] {
        let Scene { mut sandbox, mut door, bridge, .. } = scene(1);
        let many = vec![7; UNDER_WAY_BYTES * 20];
        let ends: [&mut (dyn Both + Send); 2] =
            if sandbox_first { [&mut sandbox, &mut door] } else { [&mut door, &mut sandbox] };
        let [mut one, mut other] = ends;
        let send = async {
            one.write_all(&many).await.unwrap();
            one.shutdown().await.unwrap();
        };
        let ((), heard) = tokio::join!(send, all(&mut other));
        assert!(heard == many, "{} bytes", heard.len());
        other.write_all(b"and back").await.unwrap();
        other.shutdown().await.unwrap();
        assert_eq!(all(&mut one).await, b"and back");
        ended(bridge).await;
    }
}

trait Both: AsyncRead + AsyncWrite + Unpin {}
impl<T: AsyncRead + AsyncWrite + Unpin> Both for T {}

#[tokio::test]
async fn what_nobody_takes_fills_no_memory() {
    let Scene { mut sandbox, mut door, .. } = scene(1);
    let ends: [&mut (dyn Both + Send); 2] = [&mut sandbox, &mut door];
    for end in ends {
        let mut taken = 0;
        // What has moved when nothing moves any more: two buffers, and what the kernel keeps for a socket.
        while let Ok(wrote) = timeout(Duration::from_millis(200), end.write(&[0; 4096])).await {
            taken += wrote.unwrap();
            assert!(taken < 16 * UNDER_WAY_BYTES, "{taken} bytes");
        }
        assert!(taken >= UNDER_WAY_BYTES, "{taken} bytes");
    }
}

#[tokio::test]
async fn what_the_door_said_last_waits_for_a_slow_reader_until_the_door_has_closed() {
    let Scene { mut sandbox, mut door, bridge, .. } = scene(1);
    let many = vec![7; UNDER_WAY_BYTES * 20];
    let mut heard = vec![0; many.len() - UNDER_WAY_BYTES * 2];
    let (wrote, read) = tokio::join!(door.write_all(&many), sandbox.read_exact(&mut heard));
    wrote.unwrap();
    read.unwrap();
    drop(door);
    tokio::time::sleep(Duration::from_millis(20)).await;
    assert_eq!(all(&mut sandbox).await.len(), UNDER_WAY_BYTES * 2);
    ended(bridge).await;

    let Scene { mut sandbox, mut door, closed, bridge } = scene(1);
    while timeout(Duration::from_millis(200), door.write_all(&[0; 4096])).await.is_ok() {}
    drop(door);
    tokio::time::sleep(Duration::from_millis(20)).await;
    assert!(!bridge.is_finished());
    closed.cancel();
    ended(bridge).await;
    assert!(!all(&mut sandbox).await.is_empty());
}

#[tokio::test]
async fn an_answer_arrives_though_the_door_takes_no_more() {
    let Scene { mut sandbox, mut door, bridge, .. } = scene(1);
    while timeout(Duration::from_millis(200), sandbox.write(&[0; 4096])).await.is_ok() {}
    door.write_all(b"too much").await.unwrap();
    drop(door);
    let mut heard = [0; 8];
    timeout(PATIENCE, sandbox.read_exact(&mut heard)).await.unwrap().unwrap();
    assert_eq!(&heard, b"too much");
    ended(bridge).await;
    assert!(sandbox.write_all(b"more").await.is_err());
}

#[tokio::test]
async fn beyond_the_room_for_it_nobody_is_waited_for() {
    let Scene { sandbox, mut door, bridge, .. } = scene(0);
    while timeout(Duration::from_millis(200), door.write_all(&[0; 4096])).await.is_ok() {}
    drop(door);
    ended(bridge).await;
    drop(sandbox);
}

#[tokio::test]
async fn a_connection_ends_with_either_end() {
    let Scene { mut sandbox, door, bridge, .. } = scene(1);
    drop(door);
    assert_eq!(all(&mut sandbox).await, b"");
    ended(bridge).await;

    let Scene { sandbox, mut door, bridge, .. } = scene(1);
    drop(sandbox);
    assert_eq!(all(&mut door).await, b"");
    let written = async { while door.write_all(&[0; 4096]).await.is_ok() {} };
    timeout(PATIENCE, written).await.unwrap();
    ended(bridge).await;
}
