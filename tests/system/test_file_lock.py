"""The lock between processes."""

from __future__ import annotations

import subprocess
import sys
import threading

from ouro_edge.system.file_lock import file_lock

HOLD = (
    "import sys; from pathlib import Path; from ouro_edge.system.file_lock import file_lock\n"
    "with file_lock(Path(sys.argv[1])):\n"
    "    print('held', flush=True); sys.stdin.read()"
)


def test_one_at_a_time_also_between_threads(tmp_path):
    inside, most, waits = 0, 0, []

    def work():
        nonlocal inside, most
        for _ in range(5):
            with file_lock(tmp_path / "new" / "lock", lambda: waits.append(1)):
                inside += 1
                most = max(most, inside)
                inside -= 1

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == 1 and list((tmp_path / "new").iterdir()) == []


def test_another_process_has_it_until_it_is_killed(tmp_path):
    path = tmp_path / "lock"
    with subprocess.Popen([sys.executable, "-c", HOLD, path], stdin=-1, stdout=-1, text=True) as owner:
        assert owner.stdout is not None and owner.stdout.readline() == "held\n"
        waits = []
        with file_lock(path, lambda: (waits.append(owner.poll()), owner.kill())):
            assert waits == [None]  # it was alive when this process began to wait, and the wait ended with it
            assert owner.wait(10) != 0
    assert not path.exists()


def test_without_a_place_for_the_file_there_is_no_lock(tmp_path):
    (tmp_path / "file").write_text("")
    with file_lock(tmp_path / "file" / "lock"):
        pass
