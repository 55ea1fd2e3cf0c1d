"""The texts of the systemd units: the service that tests a release, the server, and the install at the first boot."""
from merino_runtime.delivery import releases
from merino_runtime.delivery.manifest import APP

USER = "merino"
UNIT, SERVE_UNIT, FIRST_BOOT_UNIT = "merino.service", "merino-serve.service", "merino-install.service"
SERVE_OPTIONS = "/etc/merino/serve.env"
INCOMING, PACKAGE = "incoming", "package.merino"  # in ROOT: what the first boot installs
MOST_STARTS = 3  # of a release that nothing and nobody marked good
FIRST_WORDS = (releases.INSTALLED, '"Once upon a time"', "-n", "24", "--temperature", "0")
PYTHON = "/usr/bin/python3"  # the system's: what root runs at each start
# Units that enlarge a card's file system at its first start: systemd's, cloud-init's, Raspberry Pi OS's, JetPack's.
GROWING = ("systemd-repart.service", "systemd-growfs-root.service", "systemd-growfs@-.service", "cloud-init.service",
           "rpi-resize.service", "resize2fs_once.service", "nvresizefs.service", "nvfb.service")


def service_unit(root: str) -> str:
    """Return merino.service. It runs on systemd 237 (JetPack 4), which rejects Restart= with Type=oneshot. `+` means as
    root. It wants the server's unit, so that each start of this one starts the server again, if there is one."""
    run = f"{PYTHON} -I {root}/{APP} service"
    return f"""[Unit]
Description=merino: self-test of the installed language model
ConditionPathIsDirectory={root}/{releases.RELEASES}
After=local-fs.target
Wants={SERVE_UNIT}
StartLimitIntervalSec=3600
StartLimitBurst={MOST_STARTS + 3}

[Service]
Type=simple
RemainAfterExit=yes
User={USER}
ExecStartPre=+{run} begin --root {root}
ExecStartPre={run} test --root {root}
ExecStart=+{run} end --root {root}
TimeoutStartSec=infinity
Restart=on-failure
RestartSec=5
Environment=HOME={root}/{releases.STATE} XDG_CACHE_HOME={root}/{releases.STATE}
UMask=0022
{hardened(root)}RestrictAddressFamilies=AF_UNIX

[Install]
WantedBy=multi-user.target
"""


def hardened(root: str) -> str:
    """Return the limits of a process of the service's user, except those on sockets."""
    return f"""NoNewPrivileges=yes
CapabilityBoundingSet=
ProtectSystem=strict
ReadWritePaths={root}/{releases.STATE}
ProtectHome=yes
PrivateTmp=yes
ProtectKernelTunables=yes
ProtectKernelModules=yes
ProtectControlGroups=yes
RestrictNamespaces=yes
RestrictRealtime=yes
LockPersonality=yes
SystemCallArchitectures=native
"""


def serve_unit(root: str) -> str:
    """Return merino-serve.service, which serves the release in use once it has passed its test. An upgrade or a
    rollback restarts it with merino.service. Root may set options in SERVE_OPTIONS."""
    return f"""[Unit]
Description=merino: serves the installed language model
Requires={UNIT}
PartOf={UNIT}
After={UNIT} network.target
StartLimitIntervalSec=600
StartLimitBurst=20

[Service]
User={USER}
EnvironmentFile=-{SERVE_OPTIONS}
ExecStart={root}/{releases.CURRENT}/{releases.LAUNCHER} serve {releases.INSTALLED} $OPTIONS
Restart=always
RestartSec=5
Environment=HOME={root}/{releases.STATE} XDG_CACHE_HOME={root}/{releases.STATE}
UMask=0077
{hardened(root)}RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6

[Install]
WantedBy=multi-user.target
"""


def first_boot_unit(root: str, allow_unsigned: bool = False) -> str:
    """Return merino-install.service. It installs what is in ROOT/incoming, after the file system has grown to the size
    of its card. After a failure it runs again, soon and at the next boot; `install --service` disables it. The console
    shows its output, then a few words that the release generates as the service's user. These fail no install: a model
    may have no tokenizer."""
    incoming, unsigned = f"{root}/{INCOMING}", " --allow=unsigned" if allow_unsigned else ""
    return f"""[Unit]
Description=merino: installs the language model that came with this card
After=local-fs.target {" ".join(GROWING)}
StartLimitIntervalSec=3600
StartLimitBurst=3

[Service]
Type=simple
RemainAfterExit=yes
ExecStartPre={PYTHON} -I {incoming}/{APP} install {incoming}/{PACKAGE} --root {root} --service{unsigned}
ExecStart=-/sbin/runuser -u {USER} -- {root}/{releases.CURRENT}/{releases.LAUNCHER} generate {" ".join(FIRST_WORDS)}
TimeoutStartSec=infinity
Restart=on-failure
RestartSec=10
Environment=HOME=/root
UMask=0022
StandardOutput=journal+console
StandardError=journal+console

[Install]
WantedBy=multi-user.target
"""
