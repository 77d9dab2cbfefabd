"""python -m fundus_lib.data status <folder>: what of the catalogue lies there, and how to get the rest."""

import sys

from fundus_lib import data

if len(sys.argv) != 3 or sys.argv[1] != "status" or not sys.argv[2]:
    sys.exit("which folder?  make data-status DATA=<folder of unpacked downloads>")
try:
    table = data.status(sys.argv[2])
except (FileNotFoundError, data.DataError) as error:
    sys.exit(str(error))
print(table[table.found].drop(columns="found").to_string(index=False))
for row in table[~table.found].itertuples():
    print(f"{row.dataset}: not found; {row.where}")
