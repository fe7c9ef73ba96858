"""How long does each lesson run? Measures every notebook of nbs/1_method, one after the other, and writes the
seconds into its head.

    python tools/lesson_times.py                    all lessons: four minutes on two quiet cores
    python tools/lesson_times.py 06 07              these alone
    python tools/lesson_times.py --heads            measure nothing: write the recorded seconds into the heads

A lesson is run as `make test` runs it: nbdev-test, imports included, one thread. (In JupyterLab torch uses all cores.) Rows go to
nbs/results/lesson_times.csv, a lesson that is measured again replaces its older row; tests/method/test_lessons.py
holds the heads to the rows. Columns:

    lesson             01_notation, 02_toy_world, …
    seconds            wall clock, of the whole run
    cores              of the machine
    date … device      as in the other results"""

import argparse
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from record import here, put

ROOT = Path(__file__).resolve().parents[1]
LESSONS = sorted((ROOT / 'nbs' / '1_method').glob('*.ipynb'))
OUT = ROOT / 'nbs' / 'results' / 'lesson_times.csv'
COLUMNS = ('lesson', 'seconds', 'cores', *here())
TIME = re.compile(r'(\*\*Time on two cores:\*\* )(\d+)( seconds)')


def measure(path):
    command = [str(Path(sys.executable).with_name('nbdev-test')), str(path)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}  # as `make test` does: a thread per notebook
    start = time.perf_counter()
    run = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    seconds = time.perf_counter() - start
    if run.returncode:
        sys.exit(f'{path.name} fails:\n{run.stdout[-2000:]}{run.stderr[-2000:]}')
    return dict(lesson=path.stem, seconds=round(seconds, 1), cores=os.cpu_count(), **here())


def rounded(seconds):
    "To 5 seconds, upwards."
    return max(5, -(-int(seconds + 0.999) // 5) * 5)


def write_head(path, seconds):
    nb = json.loads(path.read_text(encoding='utf-8'))
    for cell in nb['cells']:
        text = ''.join(cell['source'])
        if cell['cell_type'] == 'markdown' and TIME.search(text):
            text = TIME.sub(rf'\g<1>{rounded(seconds)}\g<3>', text)
            cell['source'] = text.splitlines(keepends=True)
            path.write_text(json.dumps(nb, indent=1, ensure_ascii=False, sort_keys=True) + '\n', encoding='utf-8')
            return
    sys.exit(f'{path.name} does not say "**Time on two cores:** N seconds"')


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('lessons', nargs='*', help='their numbers; none: all')
    parser.add_argument('--heads', action='store_true', help='measure nothing, write the heads')
    options = parser.parse_args()
    from idrnet_nb.experiments.results import read_rows

    for path in LESSONS:
        if options.lessons and path.stem[:2] not in options.lessons:
            continue
        if not options.heads:
            row = measure(path)
            put(OUT, [row], ('lesson',), COLUMNS)
            print(f'{row["lesson"]}: {row["seconds"]} s', flush=True)
        rows = {r['lesson']: r for r in read_rows(OUT)}
        write_head(path, float(rows[path.stem]['seconds']))


if __name__ == '__main__':
    main()
