// Command receiver takes webhooks and authenticates them with the reference library of Standard Webhooks,
// which Posthorn did not write. It is what a receiver of your own could look like.
//
// Environment: SECRET (whsec_…, required), LISTEN (":8080"), FAIL (a status code: every event is answered
// with it, as if the receiver were broken; challenges are still answered).
package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"net/http"
	"os"
	"strconv"
	"sync"
	"time"

	standardwebhooks "github.com/standard-webhooks/standard-webhooks/libraries/go"
)

const (
	bodyBytesMax  = 2 << 20
	headerTimeout = 10 * time.Second
	bodyTimeout   = 30 * time.Second
)

// message is what every request of Posthorn in this dialect has in common.
type message struct {
	Type      string `json:"type"`
	Challenge string `json:"challenge"`
}

// receiver counts what it gets.
type receiver struct {
	webhook *standardwebhooks.Webhook
	fail    int

	mutex sync.Mutex
	stats stats
	ids   map[string]bool
}

// stats is the answer to GET /stats.
type stats struct {
	Authenticated int            `json:"authenticated"`
	Forged        int            `json:"forged"`
	Failed        int            `json:"failed"`
	Accepted      int            `json:"accepted"`
	Unique        int            `json:"unique"`
	ByType        map[string]int `json:"byType"`
}

func main() {
	if err := run(); err != nil {
		log.Fatal(err)
	}
}

func run() error {
	webhook, err := standardwebhooks.NewWebhook(os.Getenv("SECRET"))
	if err != nil {
		return fmt.Errorf("SECRET is no signing key (whsec_…): %w", err)
	}
	fail := 0
	if text := os.Getenv("FAIL"); text != "" {
		if fail, err = strconv.Atoi(text); err != nil || fail < 300 || fail > 599 {
			return errors.New("FAIL must be a status code from 300 to 599")
		}
	}
	listen := os.Getenv("LISTEN")
	if listen == "" {
		listen = ":8080"
	}
	r := &receiver{webhook: webhook, fail: fail, ids: map[string]bool{}, stats: stats{ByType: map[string]int{}}}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "ok") })
	mux.HandleFunc("GET /stats", r.tell)
	mux.HandleFunc("POST /", r.receive)
	server := &http.Server{Addr: listen, Handler: mux, ReadHeaderTimeout: headerTimeout, ReadTimeout: bodyTimeout}
	log.Printf("listening on %s, answering events with %s", listen, http.StatusText(max(fail, http.StatusOK)))
	return server.ListenAndServe()
}

// receive authenticates the raw body before anything else looks at it.
func (r *receiver) receive(w http.ResponseWriter, request *http.Request) {
	body, err := io.ReadAll(http.MaxBytesReader(w, request.Body, bodyBytesMax))
	if err != nil {
		http.Error(w, "the body is too long or broke off", http.StatusBadRequest)
		return
	}
	if err := r.webhook.Verify(body, request.Header); err != nil {
		r.count(func(s *stats) { s.Forged++ })
		log.Printf("FORGED: %v", err)
		http.Error(w, "the signature does not fit", http.StatusUnauthorized)
		return
	}
	var m message
	if err := json.Unmarshal(body, &m); err != nil {
		http.Error(w, "the body is no JSON", http.StatusBadRequest)
		return
	}
	if m.Type == "webhook.verification" {
		log.Printf("challenge answered")
		fmt.Fprint(w, m.Challenge)
		return
	}
	id := request.Header.Get(standardwebhooks.HeaderWebhookID)
	code := http.StatusNoContent
	if r.fail != 0 {
		code = r.fail
	}
	r.count(func(s *stats) {
		s.Authenticated++
		s.ByType[m.Type]++
		if code >= 300 {
			s.Failed++
			return
		}
		s.Accepted++
		if !r.ids[id] {
			r.ids[id] = true
			s.Unique++
		}
	})
	log.Printf("%s %s authentic, %d bytes, answered %d", id, m.Type, len(body), code)
	w.WriteHeader(code)
}

func (r *receiver) count(change func(*stats)) {
	r.mutex.Lock()
	defer r.mutex.Unlock()
	change(&r.stats)
}

func (r *receiver) tell(w http.ResponseWriter, _ *http.Request) {
	r.mutex.Lock()
	defer r.mutex.Unlock()
	w.Header().Set("Content-Type", "application/json")
	if err := json.NewEncoder(w).Encode(r.stats); err != nil {
		log.Printf("the stats were not read: %v", err)
	}
}
