"""How the recordings beside this file were made, by the reading code of jetson-stats itself: no board was at hand.

    python3 -m venv v3 && v3/bin/pip install jetson-stats==3.1.4  && v3/bin/python record.py nano > nano-3.1.4.json
    python3 -m venv v4 && v4/bin/pip install jetson-stats==4.2.12 && v4/bin/python record.py orin > orin-4.2.12.json

What a board would answer is written here: a line of tegrastats, of `jetson_clocks --show`, of nvpmodel, and a tree of
sysfs, in the forms that the boards have (JetPack 4.6 and 6), with values a board can have. jetson-stats reads them; its
service alone, which only passes the values on, is not run. jetson-stats is AGPL: nothing of it is in these files.
"""

import json
import os
import sys
import tempfile

TEGRASTATS = (
    "RAM 1216/3964MB (lfb 276x4MB) SWAP 0/1982MB (cached 0MB) IRAM 0/252kB(lfb 252kB)"
    " CPU [24%@1479,18%@1479,11%@1479,9%@1479] EMC_FREQ 7%@1600 GR3D_FREQ 63%@921 APE 25 PLL@31C CPU@34.5C PMIC@100C"
    " GPU@32C AO@41.5C thermal@33.25C POM_5V_IN 4412/3100 POM_5V_GPU 1206/402 POM_5V_CPU 842/610"
)
JETSON_CLOCKS = [
    "SOC family:tegra210  Machine:NVIDIA Jetson Nano Developer Kit",
    "cpu0: Online=1 Governor=schedutil MinFreq=102000 MaxFreq=1479000 CurrentFreq=1479000 IdleStates: WFI=1 c7=1 ",
    "GPU MinFreq=76800000 MaxFreq=921600000 CurrentFreq=921600000",
    "EMC MinFreq=204000000 MaxFreq=1600000000 CurrentFreq=1600000000 FreqOverride=0",
    "Fan: speed=0",
    "NV Power Mode: MAXN",
]
NANO_MODES = "POWER_MODEL: ID=0 NAME=MAXN\nPOWER_MODEL: ID=1 NAME=5W\n"
ORIN_MODES = "".join(
    f"POWER_MODEL: ID={number} NAME={name}\n" for number, name in enumerate(("15W", "25W", "MAXN_SUPER", "7W"))
)
ORIN = {
    "class/devfreq/17000000.gpu/governor": "nvhost_podgov", "class/devfreq/17000000.gpu/cur_freq": "612000000",
    "class/devfreq/17000000.gpu/max_freq": "612000000", "class/devfreq/17000000.gpu/min_freq": "306000000",
    "class/devfreq/17000000.gpu/device/of_node/name": "gpu\0", "class/devfreq/17000000.gpu/device/load": "874",
    "class/devfreq/17000000.gpu/device/railgate_enable": "1",
    "class/devfreq/17000000.gpu/device/enable_3d_scaling": "1",
    **{f"bus/i2c/devices/1-0040/hwmon/hwmon1/{name}": text for name, text in {
        "in1_label": "VDD_IN", "in2_label": "VDD_CPU_GPU_CV", "in3_label": "VDD_SOC",
        "in7_label": "sum of shunt voltages",
        "in1_input": "5056", "in2_input": "5048", "in3_input": "5048", "in7_input": "3",
        "curr1_input": "1840", "curr2_input": "912", "curr3_input": "312",
    }.items()},
    "bus/i2c/devices/1-0040/name": "ina3221",
}  # fmt: skip


def written(root, files):
    for name, text in files.items():
        path = os.path.join(root, name)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "w") as file:
            file.write(text)


def program(folder, query, modes):
    """`nvpmodel` as a program: what it answers to -q and to -p."""
    path = os.path.join(folder, "nvpmodel")
    with open(path, "w") as file:
        file.write(f'#!/bin/sh\n[ "$1" = -q ] && printf "{query}" || printf "{modes}"\n')
    os.chmod(path, 0o755)
    os.environ["PATH"] = folder + os.pathsep + os.environ["PATH"]


def nano(root):
    """Version 3: `gpu`, `power` and `nvpmodel` as its client has them."""
    from jtop.core import jetson_clocks, nvpmodel, tegra_parse
    from jtop.service import JtopServer

    program(root, "NV Power Mode: MAXN\\n0\\n", NANO_MODES.replace("\n", "\\n"))
    shown = jetson_clocks.decode_show_message(JETSON_CLOCKS)
    gpu = tegra_parse.VALS(TEGRASTATS)["GR3D"]
    gpu.update(shown["GPU"])
    del gpu["current_freq"]
    watts = tegra_parse.WATTS(TEGRASTATS).items()
    rails = {name.replace("VDD_", "").replace("POM_", "").replace("_", " "): value for name, value in watts}
    service = nvpmodel.NVPModelService(None, "nvpmodel")
    client = nvpmodel.NVPModel()
    client._update({"modes": service.modes(), "mode": service.get(), "thread": False})
    power = JtopServer._total_power(None, rails)
    return {"gpu": gpu, "power": power, "nvpmodel": {"name": client.name, "id": client.id, "modes": client.modes}}


def orin(root):
    """Version 4: the same."""
    from jtop.core import nvpmodel
    from jtop.core.gpu import GPUService, find_igpu
    from jtop.core.power import PowerService, find_all_i2c_power_monitor

    written(root, ORIN)
    devices = os.path.join(root, "class", "devfreq")
    os.rename(os.path.join(devices, "17000000.gpu"), os.path.join(root, "gpu"))
    os.symlink(os.path.join(root, "gpu"), os.path.join(devices, "17000000.gpu"))  # as in sysfs
    program(root, "NV Power Mode: 15W\\n0\\n", ORIN_MODES.replace("\n", "\\n"))
    gpus, power = GPUService.__new__(GPUService), PowerService.__new__(PowerService)
    gpus._gpu_list = find_igpu(devices)
    power._power_sensor = find_all_i2c_power_monitor(os.path.join(root, "bus", "i2c", "devices"))
    power._power_avg = {}
    mode, (_, models) = nvpmodel.nvpmodel_query(), nvpmodel.nvpmodel_decode()
    return {
        "gpu": gpus.get_status(), "power": power.get_status(),
        "nvpmodel": {"name": mode["name"], "id": mode["id"], "models": models},
    }  # fmt: skip


if __name__ == "__main__":
    import jtop

    with tempfile.TemporaryDirectory() as work:
        recorded = {"jetson_stats": jtop.__version__, **{"nano": nano, "orin": orin}[sys.argv[1]](work)}
    print(json.dumps(recorded, indent=1))
