# The host, and what the user may do there.
$os = Get-CimInstance -ClassName Win32_OperatingSystem
$module = Get-Module -ListAvailable -Name Hyper-V | Sort-Object Version -Descending | Select-Object -First 1
$denied = $null
if ($module) {
    try { $null = Get-VMHost } catch { $denied = $_.Exception.Message }
}
Emit @{
    system = Word $os.Caption; version = Word $os.Version
    module = $(if ($module) { Word $module.Version } else { $null })
    denied = $denied; powershell = $PSVersionTable.PSVersion.ToString()
}
