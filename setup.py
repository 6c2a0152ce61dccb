"""Packaging of ndem_ocp. The extras fairchem1 and fairchem2 bring a fairchem with its own pins
(torch 2.4 and numpy 1.26; torch 2.13); `make env` and `make env2` build the locked environments of
requirements/ instead."""

from pathlib import Path

from setuptools import find_packages, setup
from setuptools.dist import Distribution

ROOT = Path(__file__).parent
# distutils' command; its module's place differs between versions of setuptools
install_data = Distribution().get_command_class("install_data")


class InstallBesidePackages(install_data):
    """Put data files next to the packages (site-packages) and not below sys.prefix.

    A wheel keeps data files under <name>.data/data and pip maps its sibling <name>.data/purelib
    to site-packages, for wheel and editable installs alike. Two things have to lie there and
    cannot be part of a package: the .pth file that makes the stand-ins of torch_scatter & co.
    importable before fairchem asks for them, and the entry in fairchem's own plug-in folder.
    """

    def finalize_options(self):
        super().finalize_options()
        self.install_dir = str(Path(self.install_dir).parent / "purelib")


class DistributionWithData(Distribution):
    """setuptools' editable installs ask for has_data(), which its Distribution lacks, and leave
    the data files out."""

    def has_data(self):
        return self.has_data_files()


setup(
    distclass=DistributionWithData,
    name="ndem-ocp",
    version="0.1.0",
    description="NDeM (Node Denoising on non-Equilibrium Molecules) for fairchem-core",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="MIT",
    python_requires=">=3.10,<3.13",
    packages=find_packages(include=["ndem_ocp*", "fairchem_kit*"]),
    data_files=[
        (".", ["packaging/ndem_ocp_standins.pth"]),
        ("fairchem/experimental", ["packaging/fairchem_experimental/.include"]),
        (
            "fairchem/experimental/ndem_ocp_plugin",
            ["packaging/fairchem_experimental/ndem_ocp_plugin/register.py"],
        ),
    ],
    package_data={"ndem_ocp.fit": ["templates/*.yml"]},
    cmdclass={"install_data": InstallBesidePackages},
    # No fairchem: there are two, with one name, and an environment holds one of them (the extras).
    install_requires=[
        "torch",
        "torch-geometric",
        "numpy",
        "ase",
        # 1.7 and 1.8: a file opened before a fork, as fairchem's format: lmdb does, ends data
        # workers in a segmentation fault; 2 refuses to open a file twice in one process
        "lmdb<1.7",
        "matplotlib",
        "pyyaml",
        "submitit",
        "tqdm",
        "wandb",
    ],
    extras_require={
        "fairchem1": [
            "fairchem-core==1.10.0",
            "scipy<1.17",  # 1.17 removed sph_harm, which e3nn and fairchem's GemNet import
        ],
        "fairchem2": ["fairchem-core==2.24.*"],
        # needs a newer torch than fairchem-core's metadata allows: docs/install.md
        "molecules": ["torchmd-net>=3.1,<3.2"],
        "qm9": ["qm9pack"],
        "dashboard": ["wandb-workspaces>=0.4.13,<0.5"],  # ndem dashboard
        "completion": ["shtab"],  # ndem completion
        "kernels": ["triton>=3.3"],  # their tests; GPU builds of torch bring Triton
        "test": ["pytest", "pytest-timeout", "shtab"],
    },
    entry_points={
        "console_scripts": ["ndem = ndem_ocp.cli:main"],
        "fairchem_kit.register": ["ndem_ocp = ndem_ocp:register"],
    },
    classifiers=[
        "License :: OSI Approved :: MIT License",
        "Programming Language :: Python :: 3",
        "Topic :: Scientific/Engineering :: Chemistry",
    ],
)
