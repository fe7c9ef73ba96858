"""The command `idrnet` in a test."""

from idrnet_nb.cli import entry_point as cli


def run_command(capsys, *words):
    "Exit code, output and messages; an error that nobody expected is a failure."
    capsys.readouterr()
    try:
        code = cli.main([str(w) for w in words])
    except SystemExit as e:
        code = e.code
    said = capsys.readouterr()
    assert 'not expected' not in said.err and 'Traceback' not in said.err, said.err
    return code, said.out, said.err
