// vcsim: VMware's vSphere simulator (govmomi, as packaged by Debian), with what a real server has and it has
// not: a certificate that today's TLS clients accept, and a file service that wants a session.
package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"flag"
	"fmt"
	"log"
	"math/big"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/signal"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/vmware/govmomi/simulator"
	_ "github.com/vmware/govmomi/vapi/simulator"
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

// sessions wants one for /folder, as ESXi and vCenter do, and ends each after so many requests.
type sessions struct {
	inner http.Handler
	limit int
	mutex sync.Mutex
	used  map[string]int
}

func (s *sessions) ServeHTTP(w http.ResponseWriter, r *http.Request) {
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

func main() {
	esx := flag.Bool("esx", false, "a standalone ESXi host instead of a vCenter")
	listen := flag.String("l", "127.0.0.1:8989", "address; port 0 takes a free one")
	user := flag.String("user", "root", "user name")
	password := flag.String("password", "secret", "password")
	machines := flag.Int("vm", 2, "virtual machines per resource pool")
	limit := flag.Int("session-requests", 0, "a session ends after so many requests; 0 for never")
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
	server.Config.Handler = &sessions{inner: server.Config.Handler, limit: *limit, used: map[string]int{}}
	fmt.Printf("ready https://%s/sdk\n", server.URL.Host)

	stop := make(chan os.Signal, 1)
	signal.Notify(stop, syscall.SIGINT, syscall.SIGTERM)
	<-stop
	server.Close()
}
