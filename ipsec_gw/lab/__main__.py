"""``python -m ipsec_gw.lab``: the lab's commands without the rest of ipsec-gw."""

import sys

from ipsec_gw.errors import IpsecGwError
from ipsec_gw.lab.command import lab

try:
    lab(prog_name="ipsec-gw lab")
except IpsecGwError as error:
    sys.stderr.write(f"ipsec-gw: {error}\n")
    sys.exit(error.exit_code)
