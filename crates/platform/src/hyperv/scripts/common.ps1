# What every script begins with. $words holds what was asked, as data.
function Find-One([string]$name) {
    # A name may hold wildcards, and several VMs may have the same one.
    $pattern = [Management.Automation.WildcardPattern]::Escape($name)
    $found = @(Get-VM -Name $pattern -ErrorAction SilentlyContinue | Where-Object { $_.Name -ceq $name })
    $id = [Guid]::Empty
    if ($found.Count -eq 0 -and [Guid]::TryParse($name, [ref]$id)) {
        $found = @(Get-VM -Id $id -ErrorAction SilentlyContinue)
    }
    if ($found.Count -eq 0) {
        # Tells who may not look from what is not there.
        $null = Get-VMHost
        throw 'OmnivisorNotFound'
    }
    if ($found.Count -gt 1) {
        throw ('OmnivisorAmbiguous ' + (($found | ForEach-Object { $_.Id.ToString() }) -join ' '))
    }
    $found[0]
}
function Find-Snapshot($vm, [string]$name) {
    $all = @(Get-VMSnapshot -VM $vm)
    $found = @($all | Where-Object { $_.Name -ceq $name })
    if ($found.Count -eq 0) { $found = @($all | Where-Object { $_.Id.ToString() -eq $name }) }
    if ($found.Count -eq 0) { throw 'OmnivisorNoSnapshot' }
    if ($found.Count -gt 1) {
        throw ('OmnivisorAmbiguousSnapshot ' + (($found | ForEach-Object { $_.Id.ToString() }) -join ' '))
    }
    $found[0]
}
function Word($value) { if ($null -eq $value) { $null } else { $value.ToString() } }
function Number($value) { if ($null -eq $value) { $null } else { [long]$value } }
function Moment($value) { if ($null -eq $value) { $null } else { $value.ToUniversalTime().ToString('yyyy-MM-ddTHH:mm:ssZ') } }
function Summary($vm) {
    $addresses = @()
    if ($vm.State.ToString() -eq 'Running') {
        $addresses = @($vm.NetworkAdapters | ForEach-Object { $_.IPAddresses } | Where-Object { $_ })
    }
    $memory = $vm.MemoryAssigned
    if (-not $memory) { $memory = $vm.MemoryStartup }
    @{
        name = Word $vm.Name; id = Word $vm.Id; state = Word $vm.State; status = Word $vm.Status
        cpus = Number $vm.ProcessorCount; memory = Number $memory; addresses = [object[]]$addresses
    }
}
function Chain($path) {
    # An image and those that it is based on.
    $chain = @()
    while ($path -and $chain.Count -lt 64) {
        $file = Get-Item -LiteralPath $path
        $chain += @{
            path = Word $file.FullName; length = Number $file.Length
            stamp = $file.LastWriteTimeUtc.Ticks.ToString()
        }
        $path = (Get-VHD -Path $path).ParentPath
    }
    $chain
}
