"Hands settings.ini to setuptools. nbdev keeps its own switches in pyproject.toml."

from configparser import ConfigParser
from pathlib import Path
from setuptools import find_packages, setup

root = Path(__file__).resolve().parent
conf = ConfigParser(interpolation=None)
if not conf.read(root / 'settings.ini', encoding='utf-8'):
    raise SystemExit(
        f'settings.ini is missing beside {Path(__file__).name}: without it the package would have no name, '
        'no version and no requirements. In an sdist, MANIFEST.in must include it.'
    )
cfg = conf['DEFAULT']
readme = root / 'README.md'
extras = {name: cfg[f'{name}_requirements'].split() for name in ('plug', 'export')}
loggers = {name: cfg[f'{name}_requirements'].split() for name in ('tensorboard', 'wandb', 'mlflow', 'trackio')}

setup(
    name=cfg['lib_name'],
    version=cfg['version'],
    description=cfg['description'],
    author=cfg['author'],
    license_expression=cfg['license'],
    license_files=['LICENSE'],
    keywords=cfg['keywords'].split(),
    long_description=readme.read_text(encoding='utf-8') if readme.exists() else cfg['description'],
    long_description_content_type='text/markdown',
    packages=find_packages(include=[cfg['lib_name'], cfg['lib_name'] + '.*']),
    zip_safe=False,
    package_data={cfg['lib_name']: ['**/*.json', '**/*.j2']},
    python_requires='>=' + cfg['min_python'],
    install_requires=cfg['requirements'].split(),
    extras_require={
        **extras,
        **loggers,
        'dev': cfg['dev_requirements'].split() + sum(extras.values(), []),
    },
    entry_points={'console_scripts': [l.strip() for l in cfg['console_scripts'].splitlines() if l.strip()]},
    classifiers=[
        'Programming Language :: Python :: 3',
        'Intended Audience :: Science/Research',
        'Topic :: Scientific/Engineering :: Artificial Intelligence',
    ],
)
