$ErrorActionPreference='Stop';$ProgressPreference='SilentlyContinue';$WarningPreference='SilentlyContinue'
$ConfirmPreference='None'
$utf8=New-Object Text.UTF8Encoding $false
$out=[Console]::OpenStandardOutput()
$lines=$input
function Line{if(-not $lines.MoveNext()){return $null};[string]$lines.Current}
function Text([string]$s){$utf8.GetString([Convert]::FromBase64String($s))}
function Say([string]$s){$b=$utf8.GetBytes($s+"`n");$out.Write($b,0,$b.Length);$out.Flush()}
function Give([byte[]]$b){for($i=0;$i -lt $b.Length;$i+=49152){Say ('>'+[Convert]::ToBase64String($b,$i,[Math]::Min(49152,$b.Length-$i)))}}
function Emit($x){Give $utf8.GetBytes((ConvertTo-Json -InputObject $x -Depth 8 -Compress))}
function Fail($e){Say ('!'+[Convert]::ToBase64String($utf8.GetBytes((ConvertTo-Json -Compress -InputObject @{message=$e.Exception.Message;id=$e.FullyQualifiedErrorId;category=$e.CategoryInfo.Category.ToString()}))))}
try{
$script=[ScriptBlock]::Create((Text (Line)))
$words=(Text (Line)).Split([char]0)
. $script
Say '.'
}catch{Fail $_;exit 1}
