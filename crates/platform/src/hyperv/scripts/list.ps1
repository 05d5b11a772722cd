# All VMs.
Emit @{ vms = [object[]]@(Get-VM | ForEach-Object { Summary $_ }) }
