// vcsim: VMware's vSphere simulator (govmomi, as packaged by Debian), with what a real server has and it has
// not: a certificate that today's TLS clients accept, and a file service that wants a session.
package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha1"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"flag"
	"fmt"
	"io"
	"log"
	"math/big"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/signal"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/vmware/govmomi/simulator"
	_ "github.com/vmware/govmomi/vapi/simulator"
	"github.com/vmware/govmomi/vim25/methods"
	"github.com/vmware/govmomi/vim25/mo"
	"github.com/vmware/govmomi/vim25/soap"
	"github.com/vmware/govmomi/vim25/types"
)

const sessionCookie = "vmware_soap_session"

func certificate() tls.Certificate {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		log.Fatal(err)
	}
	template := x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()),
		Subject:      pkix.Name{CommonName: "localhost"},
		NotBefore:    time.Now().Add(-time.Hour),
		NotAfter:     time.Now().AddDate(1, 0, 0),
		DNSNames:     []string{"localhost"},
		IPAddresses:  []net.IP{net.IPv4(127, 0, 0, 1), net.IPv6loopback},
	}
	der, err := x509.CreateCertificate(rand.Reader, &template, &template, &key.PublicKey, key)
	if err != nil {
		log.Fatal(err)
	}
	sum := sha256.Sum256(der)
	fmt.Printf("thumbprint %s\n", strings.ToUpper(strings.ReplaceAll(fmt.Sprintf("% x", sum[:]), " ", ":")))
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

// sessions wants one for /folder, as ESXi and vCenter do, and ends each after so many requests. A change of the
// password, which is in a file, ends all of them.
type sessions struct {
	inner http.Handler
	limit int
	file  string
	known string
	right string
	mutex sync.Mutex
	used  map[string]int
}

// The password of this moment decides who may log in; the simulator itself knows one that never changes.
func (s *sessions) password(r *http.Request) {
	if s.file == "" {
		return
	}
	content, _ := os.ReadFile(s.file)
	now := strings.TrimSpace(string(content))
	s.mutex.Lock()
	if now != s.known {
		s.known = now
		s.used = map[string]int{}
	}
	s.mutex.Unlock()
	if r.URL.Path == "/sdk" {
		body, _ := io.ReadAll(r.Body)
		given := strings.Contains(string(body), "<password>"+now+"</password>")
		replaced := passwords.ReplaceAllString(string(body), "<password>wrong</password>")
		if given {
			replaced = passwords.ReplaceAllString(string(body), "<password>"+s.right+"</password>")
		}
		r.Body = io.NopCloser(strings.NewReader(replaced))
		r.ContentLength = int64(len(replaced))
	}
}

var passwords = regexp.MustCompile("<password>[^<]*</password>")

func (s *sessions) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.password(r)
	alive := false
	if cookie, err := r.Cookie(sessionCookie); err == nil {
		s.mutex.Lock()
		if used, known := s.used[cookie.Value]; known && (s.limit == 0 || used < s.limit) {
			s.used[cookie.Value]++
			alive = true
		}
		s.mutex.Unlock()
	}
	if !alive {
		r.Header.Del("Cookie")
		if strings.HasPrefix(r.URL.Path, "/folder") {
			w.Header().Set("WWW-Authenticate", `Basic realm="VMware HTTP server"`)
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
	}
	s.inner.ServeHTTP(w, r)
	for _, line := range w.Header().Values("Set-Cookie") {
		pair := strings.SplitN(strings.SplitN(line, ";", 2)[0], "=", 2)
		if len(pair) == 2 && pair[0] == sessionCookie {
			s.mutex.Lock()
			s.used[strings.Trim(pair[1], `"`)] = 0
			s.mutex.Unlock()
		}
	}
}

// exports answers ExportVm, which the simulator lacks, by leases whose only disk is a file, and gives no other files: as
// of a datastore of vSAN. A lease ends when nobody tells of progress in time.
type exports struct {
	inner   http.Handler
	disk    string
	timeout time.Duration
	mutex   sync.Mutex
	leases  map[string]*lease
}

type lease struct {
	mo.HttpNfcLease
	told time.Time
	all  *exports
}

var exportVM = regexp.MustCompile(`<(?:\w+:)?ExportVm[ >].*?<(?:\w+:)?_this[^>]*>([^<]+)<`)

func (e *exports) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	switch {
	case strings.HasPrefix(r.URL.Path, "/folder"):
		http.NotFound(w, r)
		return
	case strings.HasPrefix(r.URL.Path, "/nfc/"):
		e.mutex.Lock()
		known := e.leases[strings.Split(r.URL.Path, "/")[2]]
		e.mutex.Unlock()
		content, err := os.Open(e.disk)
		if known == nil || err != nil {
			http.NotFound(w, r)
			return
		}
		defer content.Close()
		known.send(w, content)
		return
	case r.URL.Path == "/sdk":
		body, _ := io.ReadAll(r.Body)
		r.Body = io.NopCloser(strings.NewReader(string(body)))
		if vm := exportVM.FindStringSubmatch(string(body)); vm != nil {
			made := &lease{told: time.Now(), all: e}
			made.State = types.HttpNfcLeaseStateReady
			made.Self = types.ManagedObjectReference{Type: "HttpNfcLease", Value: fmt.Sprintf("lease-%d", time.Now().UnixNano())}
			yes := true
			info, _ := os.Stat(e.disk)
			made.Info = &types.HttpNfcLeaseInfo{
				Lease:        made.Self,
				Entity:       types.ManagedObjectReference{Type: "VirtualMachine", Value: vm[1]},
				LeaseTimeout: int32(e.timeout / time.Second),
				DeviceUrl: []types.HttpNfcLeaseDeviceUrl{{
					Key: "/" + vm[1] + "/PVSCSIController0:0", Url: "https://*/nfc/" + made.Self.Value + "/disk-0.vmdk",
					Disk: &yes, TargetId: "disk-0.vmdk", FileSize: info.Size(),
				}},
			}
			simulator.Map.Put(made)
			e.mutex.Lock()
			e.leases[made.Self.Value] = made
			e.mutex.Unlock()
			w.Header().Set("Content-Type", "text/xml; charset=utf-8")
			fmt.Fprintf(w, `<?xml version="1.0"?><soapenv:Envelope xmlns:soapenv="http://schemas.xmlsoap.org/soap/envelope/"><soapenv:Body>`+
				`<ExportVmResponse xmlns="urn:vim25"><returnval type="HttpNfcLease">%s</returnval></ExportVmResponse></soapenv:Body></soapenv:Envelope>`, made.Self.Value)
			return
		}
	}
	e.inner.ServeHTTP(w, r)
}

// send gives the file away slowly enough for a lease to end that nobody keeps.
func (l *lease) send(w http.ResponseWriter, content io.Reader) {
	buffer := make([]byte, 1<<18)
	for {
		n, err := content.Read(buffer)
		if n == 0 || err != nil {
			return
		}
		l.all.mutex.Lock()
		alive := time.Since(l.told) < l.all.timeout && l.all.leases[l.Self.Value] != nil
		l.all.mutex.Unlock()
		if !alive {
			panic(http.ErrAbortHandler)
		}
		w.Write(buffer[:n])
		time.Sleep(time.Duration(n) * time.Second / (2 << 20))
	}
}

func (l *lease) end() {
	l.all.mutex.Lock()
	delete(l.all.leases, l.Self.Value)
	l.all.mutex.Unlock()
	fmt.Fprintf(os.Stderr, "leases %d\n", len(l.all.leases))
}

func (l *lease) HttpNfcLeaseProgress(ctx *simulator.Context, req *types.HttpNfcLeaseProgress) soap.HasFault {
	l.all.mutex.Lock()
	l.told = time.Now()
	l.all.mutex.Unlock()
	return &methods.HttpNfcLeaseProgressBody{Res: new(types.HttpNfcLeaseProgressResponse)}
}

func (l *lease) HttpNfcLeaseComplete(ctx *simulator.Context, req *types.HttpNfcLeaseComplete) soap.HasFault {
	l.end()
	return &methods.HttpNfcLeaseCompleteBody{Res: new(types.HttpNfcLeaseCompleteResponse)}
}

func (l *lease) HttpNfcLeaseAbort(ctx *simulator.Context, req *types.HttpNfcLeaseAbort) soap.HasFault {
	l.end()
	return &methods.HttpNfcLeaseAbortBody{Res: new(types.HttpNfcLeaseAbortResponse)}
}

func (l *lease) HttpNfcLeaseGetManifest(ctx *simulator.Context, req *types.HttpNfcLeaseGetManifest) soap.HasFault {
	content, _ := os.ReadFile(l.all.disk)
	yes := true
	entry := types.HttpNfcLeaseManifestEntry{
		Key: l.Info.DeviceUrl[0].Key, Sha1: fmt.Sprintf("%x", sha1.Sum(content)), Size: int64(len(content)), Disk: yes,
	}
	return &methods.HttpNfcLeaseGetManifestBody{Res: &types.HttpNfcLeaseGetManifestResponse{
		Returnval: []types.HttpNfcLeaseManifestEntry{entry},
	}}
}

func main() {
	esx := flag.Bool("esx", false, "a standalone ESXi host instead of a vCenter")
	listen := flag.String("l", "127.0.0.1:8989", "address; port 0 takes a free one")
	user := flag.String("user", "root", "user name")
	password := flag.String("password", "secret", "password")
	machines := flag.Int("vm", 2, "virtual machines per resource pool")
	file := flag.String("password-file", "", "a file with the password, which may change")
	limit := flag.Int("session-requests", 0, "a session ends after so many requests; 0 for never")
	disk := flag.String("export-disk", "", "a streamOptimized disk: each VM has it, and gives it by export leases only")
	timeout := flag.Duration("lease-timeout", 300*time.Second, "an export lease ends after so long without progress")
	flag.Parse()

	model := simulator.VPX()
	if *esx {
		model = simulator.ESX()
	}
	model.Machine = *machines
	if err := model.Create(); err != nil {
		log.Fatal(err)
	}
	defer model.Remove()

	service := model.Service
	service.Listen = &url.URL{Host: *listen, User: url.UserPassword(*user, *password)}
	service.TLS = &tls.Config{Certificates: []tls.Certificate{certificate()}}
	service.RegisterEndpoints = true
	server := service.NewServer()
	server.Config.Handler = &sessions{inner: server.Config.Handler, limit: *limit, file: *file, right: *password, used: map[string]int{}}
	if *disk != "" {
		server.Config.Handler = &exports{inner: server.Config.Handler, disk: *disk, timeout: *timeout, leases: map[string]*lease{}}
	}
	fmt.Printf("ready https://%s/sdk\n", server.URL.Host)

	stop := make(chan os.Signal, 1)
	signal.Notify(stop, syscall.SIGINT, syscall.SIGTERM)
	<-stop
	server.Close()
}
