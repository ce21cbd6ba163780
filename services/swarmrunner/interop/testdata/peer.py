#!/usr/bin/env python3
"""libtorrent as a peer, for tests.

  peer.py create CONTENT PIECE TORRENT   makes a torrent file and prints its info hash
  peer.py peer JSON                      takes part in a swarm

JSON has torrent (a file), dir, address ("10.77.0.2:6881"), and maybe settings
(of libtorrent), upload (bytes a second). What happens is printed, one line each:
"finished" once the file is whole and on disk, "error: ..." and the end otherwise.
The process ends when its standard input does.
"""

import json
import os
import select
import sys

try:
    import libtorrent as lt
except ImportError as e:
    sys.exit("%s: `task peers` installs python3-libtorrent" % e)

# Nothing beyond the swarm, and no waiting for a tick of seconds.
SETTINGS = {
    "enable_dht": False,
    "enable_lsd": False,
    "enable_upnp": False,
    "enable_natpmp": False,
    # Tried before TCP, for three seconds, with everybody.
    "enable_outgoing_utp": False,
    "connection_speed": 100,
    "min_reconnect_time": 1,
    "tick_interval": 100,
    "alert_mask": lt.alert_category.all & ~lt.alert_category.session_log & ~lt.alert_category.torrent_log & ~lt.alert_category.peer_log & ~lt.alert_category.picker_log,
}

FAULTS = ("torrent_error_alert", "file_error_alert", "listen_failed_alert", "hash_failed_alert")
# Worth a line for who looks into a failure.
NOTES = FAULTS + (
    "tracker_error_alert", "tracker_reply_alert", "peer_connect_alert", "peer_disconnected_alert", "peer_error_alert", "listen_succeeded_alert", "torrent_finished_alert",
)


def create(content, piece, torrent):
    files = lt.file_storage()
    files.add_file(os.path.basename(content), os.path.getsize(content))
    t = lt.create_torrent(files, int(piece), lt.create_torrent.v1_only)
    lt.set_piece_hashes(t, os.path.dirname(content))
    raw = lt.bencode(t.generate())
    with open(torrent, "wb") as f:
        f.write(raw)
    print(lt.torrent_info(lt.bdecode(raw)).info_hash())


def say(line):
    print(line, flush=True)


def peer(o):
    own = {"listen_interfaces": o["address"], "upload_rate_limit": o.get("upload", 0)}
    session = lt.session({**SETTINGS, **own, **(o.get("settings") or {})})
    if o.get("upload"):
        # Otherwise limits do not hold for private addresses.
        everybody = lt.ip_filter()
        everybody.add_rule("0.0.0.0", "255.255.255.255", 1 << lt.session.global_peer_class_id)
        session.set_peer_class_filter(everybody)
    # wait_for_alert hands out a pointer into a queue that may be moved before it
    # is looked at.
    notified, notify = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    session.set_alert_fd(notify)
    with open(o["torrent"], "rb") as f:
        # A torrent_info made here would be let go of without the interpreter's lock.
        params = lt.load_torrent_buffer(f.read())
    params.save_path = o["dir"]
    # What is queued waits for the session's next round.
    params.flags &= ~(lt.torrent_flags.auto_managed | lt.torrent_flags.paused)
    handle = session.add_torrent(params)
    while True:
        readable, _, _ = select.select([notified, sys.stdin], [], [])
        if sys.stdin in readable:
            return
        try:
            os.read(notified, 4096)
        except BlockingIOError:
            pass
        for a in session.pop_alerts():
            kind = type(a).__name__
            if kind in FAULTS:
                say("error: " + a.message())
                return
            if kind in NOTES:
                say("%s: %s" % (kind, a.message()))
            if kind == "torrent_finished_alert":
                handle.flush_cache()
            if kind == "cache_flushed_alert" and handle.status().is_seeding:
                say("finished")


if __name__ == "__main__":
    if sys.argv[1] == "create":
        create(*sys.argv[2:])
    else:
        # A session takes a while to end politely, for which nobody waits.
        try:
            peer(json.loads(sys.argv[2]))
        except Exception as e:
            say("error: %s: %s" % (type(e).__name__, e))
        os._exit(0)
